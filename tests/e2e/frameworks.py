"""A user's image: the trainer's, with frameworks that Trainyard itself doesn't have."""

import tempfile
from pathlib import Path

from dev.cluster.backends import choose as choose_cluster
from dev.cluster.commands import UserError
from dev.cluster.settings import load as load_settings
from dev.images.build import build_secrets
from dev.images.builder import choose as choose_builder
from tests.e2e.kube import REPO

RECIPE = REPO / "tests" / "support" / "images" / "frameworks.Containerfile"


def provide_frameworks_image(trainer: str) -> str:
    """Build the image on the trainer's and give it to the cluster; returns its name."""
    builder, cluster = choose_builder(), choose_cluster(load_settings())
    image = trainer.replace("/trainer:", "/frameworks:")
    if not builder.has(trainer) and not builder.pulls(trainer):
        raise UserError(f"{trainer} is neither built here nor in its registry: make images")
    with tempfile.TemporaryDirectory() as folder:
        options = ["--build-arg", f"FROM_IMAGE={trainer}", *build_secrets(Path(folder))]
        builder.build(RECIPE, RECIPE.parent, image, options)
    try:
        cluster.check_load([image])
    except UserError:  # a cluster that pulls from a registry
        builder.push(image)
    else:
        cluster.load([image], builder.tool)
    return image

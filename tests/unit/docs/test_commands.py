"""Commands and manifests that the pages print would be accepted by what they are for."""

import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, ValidationError
from kubernetes_validate import validate  # type: ignore[import-untyped]

from tests.unit.docs.test_links import ROOT, markdown_files
from trainyard_api.run import KIND, TrainingRun
from trainyard_api.study import STUDY_KIND, ScalingStudy
from trainyard_cli.main import _parser

PAGES = [path for path in markdown_files() if path.suffix == ".md"]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
KUBERNETES = "1.33"  # of the schemas that kubernetes-validate brings


def commands(page: Path, program: str) -> Iterator[str]:
    """The command lines of a program in a page's indented blocks, without comments."""
    for line in page.read_text().replace("\\\n", " ").splitlines():
        found = re.match(rf"    (?:\$ )?({program} .+)", line)
        if found:
            # What may be left out is in brackets, a comment follows two spaces or #.
            text = re.sub(r" \[[^\]]*\]", "", found[1])
            text = re.split(r" [|&#>]|  +(?=[^ -])", text)[0]
            yield " ".join(text.split())


@each_page
def test_trainyard_accepts_its_commands(page: Path) -> None:
    for command in commands(page, "trainyard"):
        try:
            _parser().parse_args(shlex.split(command)[1:])
        except SystemExit:
            pytest.fail(command)


@each_page
def test_make_knows_its_targets(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    named = re.findall(r"(?:^    |`)make ([a-z0-9-]+)", text, re.MULTILINE)
    assert set(named) <= targets


def values_of(command: str, chart: str) -> dict[str, Any]:
    """The chart's values with what `--set` of a helm command sets."""
    values: dict[str, Any] = yaml.safe_load((ROOT / chart / "values.yaml").read_text())
    words = shlex.split(command)
    for flag, setting in itertools.pairwise(words):
        if flag != "--set":
            continue
        for part in re.split(r",(?=[a-zA-Z])", setting):
            path, _, text = part.partition("=")
            node = values
            *parents, last = path.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            # A shell variable stands for text; everything else is read as helm reads it.
            node[last] = "x" if "$" in text or text.isupper() else yaml.safe_load(text)
    return values


@each_page
def test_charts_accept_the_values(page: Path) -> None:
    for command in commands(page, "helm"):
        chart = re.search(r"charts/(operator|serving)", command)
        if chart:
            schema = json.loads((ROOT / chart[0] / "values.schema.json").read_text())
            Draft7Validator(schema).validate(values_of(command, chart[0]))


def objects(page: Path) -> Iterator[dict[str, Any]]:
    """The manifests in a page's YAML blocks."""
    for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for document in yaml.safe_load_all(block):
            if isinstance(document, dict) and "kind" in document:
                yield document


@each_page
def test_manifests_are_valid(page: Path) -> None:
    for document in objects(page):
        match document["kind"]:
            case kind if kind == KIND:
                TrainingRun.model_validate(document)
            case kind if kind == STUDY_KIND:
                ScalingStudy.model_validate(document)
            case "StorageClass" | "NetworkPolicy":
                validate(document, KUBERNETES, strict=True)
            case "ClusterConfig":  # eksctl's own
                assert document["apiVersion"].startswith("eksctl.io/")
            case other:
                pytest.fail(f"nothing checks a {other}")


def test_the_checks_find_mistakes() -> None:
    schema = json.loads((ROOT / "charts/operator/values.schema.json").read_text())
    with pytest.raises(ValidationError):
        Draft7Validator(schema).validate(
            values_of("helm install x --set trainer.image=y", "charts/operator")
        )
    with pytest.raises(SystemExit):
        _parser().parse_args(["serve", "run", "--no-such-flag"])
    assert any(commands(ROOT / "docs/guides/local.md", "trainyard"))
    assert len(list(objects(ROOT / "docs/guides/cloud-cluster.md"))) == 4

"""A run on this machine that has come to its end."""

import json
from datetime import UTC, datetime
from pathlib import Path

from trainyard_api.checkpoint import MANIFEST, Manifest
from trainyard_storage.checkpoints import describe_files, manifest_bytes


def publish(home: Path, recipe: str = "char-gpt", serving: str | None = "generate") -> Path:
    """A run named done; its model's directory, which verifies, whatever is in it."""
    run = home / "runs" / "done"
    model = run / "data" / "models" / "step-00000001"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    manifest = Manifest(
        kind="model",
        run="done",
        attempt=1,
        recipe=recipe,
        serving=serving,
        step=1,
        created=datetime.now(UTC),
        files=describe_files(model),
    )
    (model / MANIFEST).write_bytes(manifest_bytes(manifest))
    (run / "run.json").write_text(json.dumps({"spec": {"recipe": recipe}}))
    return model

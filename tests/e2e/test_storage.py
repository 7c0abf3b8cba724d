"""storage.whenDeleted changes while the run exists: the newest value decides about the claim."""

from typing import Any

from tests.e2e.kube import Namespace, wait_until
from tests.e2e.runs import set_spec, training_run

# Leaves a file on the volume; `again`: ends well only if it is there.
KEEPS = """
import os, pathlib, sys
file = pathlib.Path(os.environ["TRAINYARD_RUN_DIR"], "kept")
if sys.argv[1] == "again":
    sys.exit(0 if file.exists() else 3)
file.parent.mkdir(parents=True, exist_ok=True)
file.write_text("kept")
"""


def set_when_deleted(space: Namespace, name: str, value: str) -> None:
    set_spec(space, name, {"storage": {"whenDeleted": value}})
    wait_until(f"{name}: {value}", lambda: space.status(name).get("whenDeleted") == value)


def owners(space: Namespace, name: str) -> list[str]:
    claim = space.get("persistentvolumeclaim", name)
    assert claim
    return [owner["name"] for owner in claim["metadata"].get("ownerReferences", [])]


def start(space: Namespace, word: str, **storage: Any) -> None:
    """Run `saved`, whose script sees the word, to its end."""
    spec = {"command": ["python3", "-c", KEEPS, word], "storage": {"size": "1Gi"} | storage}
    space.apply(training_run("saved", spec))
    space.wait_phase("saved", "Succeeded")


def test_a_finished_runs_volume_is_kept_and_used_again_and_deleted_on_request(
    space: Namespace,
) -> None:
    start(space, "first")
    assert space.status("saved")["whenDeleted"] == "Delete"
    assert owners(space, "saved") == ["saved"]
    set_when_deleted(space, "saved", "Retain")
    assert owners(space, "saved") == []
    assert space.status("saved")["phase"] == "Succeeded"
    space.kubectl("delete", "trun", "saved")
    wait_until("its pods are gone", lambda: not space.pods("saved"))
    assert owners(space, "saved") == []

    start(space, "again")  # by default it would own the claim that it makes, but this one it found
    assert owners(space, "saved") == []
    set_when_deleted(space, "saved", "Retain")
    set_when_deleted(space, "saved", "Delete")
    assert owners(space, "saved") == ["saved"]
    space.kubectl("delete", "trun", "saved")
    wait_until("so is its claim", lambda: space.get("persistentvolumeclaim", "saved") is None)

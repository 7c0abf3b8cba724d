"""Upgrades and downgrades with runs under way: what a version doesn't know is left alone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.kube import LONG, Namespace, wait_until
from tests.e2e.runs import char_gpt, training_run
from tests.e2e.test_study import SLOW, study
from tests.e2e.versions import NEWER, Versions
from trainyard_api import __version__

WAITS = ["sh", "-c", "until [ -e /tmp/end ]; do sleep 1; done"]
# What only the newer version knows: a field of the spec, and a value.
NOVEL = {"coolDownSeconds": 5, "storage": {"size": "1Gi", "whenDeleted": "Archive"}}


@pytest.fixture
def versions(operator: Namespace, tmp_path: Path) -> Iterator[Versions]:
    """Other tests may run meanwhile: the newer version does all that this one does."""
    found = Versions(operator, tmp_path / "newer")
    try:
        yield found
    finally:
        found.restore()


def plain() -> dict[str, Any]:
    """A run that trains for as long as the test takes; both versions know all of it."""
    return char_gpt("plain", None, {"corpus": "stdlib", "max_steps": 1_000_000}, numNodes=1)


def waiting(name: str, **spec: Any) -> dict[str, Any]:
    """A run that ends when `end` says so."""
    return training_run(name, {"command": WAITS, "storage": {"size": "1Gi"}} | spec)


def end(space: Namespace, run: str) -> None:
    (pod,) = (pod for pod in space.pods(run) if pod["status"]["phase"] == "Running")
    space.kubectl("exec", pod["metadata"]["name"], "-c", "trainer", "--", "touch", "/tmp/end")


def pods(space: Namespace, run: str) -> list[str]:
    return [pod["metadata"]["uid"] for pod in space.pods(run)]


def trains_on(space: Namespace, run: str) -> dict[str, Any]:
    """The status once the operator that leads has written a later step into it."""
    step = space.status(run).get("step") or 0
    return space.wait_status(run, "a later step", lambda s: (s.get("step") or 0) > step)


def condition(status: dict[str, Any], kind: str) -> dict[str, Any]:
    found = [c for c in status.get("conditions") or [] if c["type"] == kind]
    return found[0] if found else {"status": "False"}


def wait_unsupported(space: Namespace, kind: str, name: str, value: str) -> dict[str, Any]:
    """The status once the condition has this value."""

    def look() -> dict[str, Any] | None:
        status: dict[str, Any] = (space.get(kind, name) or {}).get("status") or {}
        return status if condition(status, "Unsupported")["status"] == value else None

    return wait_until(f"{name}: Unsupported {value}", look, LONG)


def novel_study() -> dict[str, Any]:
    """Its second cell is one of the newer version; both run for as long as the test takes."""
    manifest = study(
        "sizes",
        matrix={"storage.whenDeleted": ["Delete", "Archive"]},
        parallelism=2,
        steps=10_000,
    )
    spec = manifest["spec"]["template"]["spec"]
    spec |= {"config": spec["config"] | SLOW, "resourcesPerNode": {"requests": {"cpu": "100m"}}}
    return manifest


def test_upgraded_then_downgraded_under_way(space: Namespace, versions: Versions) -> None:
    space.apply(plain())
    space.wait_phase("plain", "Running")
    before = pods(space, "plain")

    versions.upgrade()
    status = space.wait_status("plain", NEWER, lambda s: s.get("handledBy") == NEWER)
    assert (status["phase"], status["attempt"], pods(space, "plain")) == ("Running", 1, before)
    space.apply(waiting("novel", **NOVEL), waiting("moved"))
    space.wait_phase("moved", "Running")
    space.kubectl("delete", "pod", "moved-1-0")
    space.wait_status(
        "moved", "attempt 2 runs", lambda s: (s["attempt"], s["phase"]) == (2, "Running")
    )
    assert space.wait_phase("novel", "Running")["handledBy"] == NEWER
    ours = {name: pods(space, name) for name in ("novel", "moved", "plain")}

    versions.downgrade()
    status = wait_unsupported(space, "trainingrun", "novel", "True")
    assert (status["phase"], status["attempt"]) == ("Running", 1)
    unsupported = condition(status, "Unsupported")
    assert unsupported["reason"] == "UnknownToThisVersion"
    assert f"(version {__version__})" in unsupported["message"]
    assert "spec.coolDownSeconds: unknown key" in unsupported["message"]
    assert "spec.storage.whenDeleted" in unsupported["message"]
    assert status["handledBy"] == NEWER
    # What it knows keeps working, and what the newer one wrote stays.
    status = trains_on(space, "plain")
    assert (status["attempt"], status["restarts"], status["handledBy"]) == (1, 0, NEWER)
    assert condition(status, "Audited")["status"] == "True"
    assert {name: pods(space, name) for name in ours} == ours
    assert space.event_reasons("plain").count("AttemptStarted") == 1
    end(space, "moved")
    first, second = space.wait_phase("moved", "Succeeded")["attempts"]
    assert (first["outcome"], first["reason"], first["zone"]) == ("Disrupted", "PodDrained", "a")
    assert (second["outcome"], second["zone"]) == ("Succeeded", "a")
    assert space.status("novel")["phase"] == "Running"
    assert pods(space, "novel") == ours["novel"]


def test_downgraded_then_upgraded_under_way(space: Namespace, versions: Versions) -> None:
    versions.upgrade()
    space.apply(plain(), waiting("novel", **NOVEL), waiting("ends", **NOVEL), novel_study())
    for run in ("plain", "novel", "ends", "sizes-1-1", "sizes-2-1"):
        space.wait_phase(run, "Running")
    names = ("plain", "novel", "sizes-1-1", "sizes-2-1")
    ours = {name: pods(space, name) for name in names}
    assert all(len(uids) == 1 for uids in ours.values())

    versions.downgrade()
    for run in ("novel", "ends", "sizes-2-1"):
        assert wait_unsupported(space, "trainingrun", run, "True")["phase"] == "Running"
    status = wait_unsupported(space, "study", "sizes", "True")
    assert (status["phase"], status["reason"]) == ("Running", "Measuring")
    unsupported = condition(status, "Unsupported")["message"]
    assert f"(version {__version__}) can't create the remaining runs: cell Archive" in unsupported
    assert status["handledBy"] == NEWER
    trains_on(space, "plain")
    trains_on(space, "sizes-1-1")
    # A run that ends now waits for an operator that knows it.
    end(space, "ends")
    (pod,) = space.pods("ends")
    wait_until("its pod has ended", lambda: space.pods("ends")[0]["status"]["phase"] == "Succeeded")
    trains_on(space, "plain")
    assert space.status("ends")["phase"] == "Running"
    assert [p["metadata"]["uid"] for p in space.pods("ends")] == [pod["metadata"]["uid"]]

    versions.upgrade()
    status = space.wait_phase("ends", "Succeeded")
    assert (status["attempt"], condition(status, "Unsupported")["status"]) == (1, "False")
    for run in ("novel", "sizes-2-1"):
        status = wait_unsupported(space, "trainingrun", run, "False")
        assert (status["phase"], status["attempt"]) == ("Running", 1)
    status = wait_unsupported(space, "study", "sizes", "False")
    assert (status["phase"], [c["measurements"] for c in status["cells"]]) == ("Running", [[], []])
    status = trains_on(space, "plain")
    assert (status["attempt"], status["restarts"]) == (1, 0)
    assert {name: pods(space, name) for name in names} == ours
    end(space, "novel")
    space.wait_phase("novel", "Succeeded")
    space.kubectl("delete", "study", "sizes")
    wait_until("its runs go with it", lambda: len(space.items("trainingruns")) == 3, LONG)

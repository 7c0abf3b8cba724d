"""The parts of the cluster that can be tested without starting it."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from dev.cluster import addons, commands, host, registry
from dev.cluster.commands import UserError, until
from dev.cluster.native import exclusive
from dev.cluster.registry import target_name
from dev.cluster.settings import NODES, REPO, Settings

HOLD = """
import sys, pathlib
from dev.cluster.native import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("image", "target"),
    [
        ("localhost:5051/trainyard/operator:dev", "localhost:5051/trainyard/operator:dev"),
        ("localhost/trainyard/operator:dev", "localhost:5051/trainyard/operator:dev"),
        ("operator:dev", "localhost:5051/trainyard/operator:dev"),
        ("docker.io/me/mine:1", "localhost:5051/me/mine:1"),
        ("me/mine:1", "localhost:5051/me/mine:1"),
        ("localhost:9999/me/mine:1", "localhost:5051/me/mine:1"),
    ],
)
def test_an_image_has_one_name_in_the_cluster(image: str, target: str) -> None:
    assert target_name(image, "localhost:5051") == target


def test_nodes_share_no_address() -> None:
    assert len({node.ip for node in NODES} | {node.pod_cidr for node in NODES}) == 2 * len(NODES)


def test_the_pause_layer_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"not really a program")
    first = registry._layer(program)
    program.touch()
    assert registry._layer(program) == first
    with tarfile.open(fileobj=BytesIO(first)) as tar:
        (entry,) = tar.getmembers()
    assert (entry.name, entry.mode, entry.size) == ("pause", 0o755, 20)


def test_there_is_exactly_one_default_storage_class() -> None:
    classes = [found for found in addons.objects() if found["kind"] == "StorageClass"]
    assert [found["metadata"]["name"] for found in classes] == [addons.STORAGE_CLASS]


def test_a_wait_reports_the_problem_and_fails_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "QUIET", 0.0)
    reported: list[str] = []
    with pytest.raises(UserError, match="it never came"):
        until(lambda: False, "it never came", reported.append, seconds=0.1)
    assert set(reported) == {"it never came"}


def test_mounts_are_found_deepest_first() -> None:
    found = host.mounts_below(Path("/"))
    assert Path("/") in found
    assert [len(str(path)) for path in found] == sorted(
        (len(str(path)) for path in found), reverse=True
    )


def test_a_second_command_waits_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(state)],
        cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        second = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(state)],
            cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        with second:
            assert second.stdout is not None
            assert "waiting" in second.stdout.readline()
            holder.communicate("")
            assert second.stdout.readline() == "held\n"
            second.communicate("")
    with exclusive(state):
        pass
    assert list(tmp_path.iterdir()) == []  # no lock file is left


def test_a_port_that_is_not_a_number_is_one_clear_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dev.cluster", "status"],
        cwd=REPO, env={"TRAINYARD_REGISTRY_PORT": "http"}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "cluster: TRAINYARD_REGISTRY_PORT is 'http': Input should be a valid integer, "
        "unable to parse string as an integer\n"
    )


def test_status_without_a_cluster_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dev.cluster", "status", "--backend", "native"],
        cwd=REPO, env={"TRAINYARD_CLUSTER_DIR": str(tmp_path / "none"), "HOME": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stdout == "no cluster is up on this machine: make cluster\n"


def test_a_context_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dev.cluster", "up", "--context", "nowhere"],
        cwd=REPO, env=os.environ | {"KUBECONFIG": str(tmp_path / "none")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("cluster: ")
    assert done.stderr.count("\n") == 1


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert Settings().cache == Path("/somewhere/trainyard")

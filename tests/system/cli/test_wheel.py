"""The wheel in an empty environment and an empty home: no checkout is needed for the quickstart."""

import json
import os
import re
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.pythons import interpreters
from trainyard_api import __version__

REPO = Path(__file__).parents[3]
UV = str(Path(sysconfig.get_path("scripts")) / "uv")
INSTALL_SECONDS = 1800  # several gigabytes, unless uv's cache has them


class Installation:
    """A virtual environment with the wheel, used from an empty home."""

    def __init__(self, path: Path, wheel: Path, extras: str, python: str = sys.executable) -> None:
        self.home = path / "home"
        self.home.mkdir(parents=True)
        self._bin = path / "venv" / "bin"
        uv("venv", "--python", python, str(path / "venv"))
        # The same build of torch as here, so that uv's cache has it.
        backend = ["--torch-backend=cpu"] if version("torch").endswith("+cpu") else []
        into = str(self._bin / "python")
        uv("pip", "install", *backend, "--python", into, f"{wheel}{extras}")

    def run(self, program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """A program of the environment, in the home, with nothing of this environment's."""
        return subprocess.run(
            [str(self._bin / program), *arguments],
            cwd=self.home,
            env={"HOME": str(self.home), "PATH": os.defpath, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    def trainyard(self, *arguments: str) -> str:
        """The output of a command that must succeed."""
        done = self.run("trainyard", *arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout


def uv(*arguments: str) -> None:
    subprocess.run(
        [UV, "--quiet", "--no-progress", *arguments], check=True, timeout=INSTALL_SECONDS
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as `make dist` builds it, from the sdist."""
    dist = tmp_path_factory.mktemp("dist")
    uv("build", "--out-dir", str(dist), str(REPO))
    (built,) = dist.glob("*.whl")
    assert built.name == f"trainyard-{__version__}-py3-none-any.whl"
    assert (dist / f"trainyard-{__version__}.tar.gz").is_file()
    return built


def test_without_extras_the_light_commands_work(wheel: Path, tmp_path: Path) -> None:
    installed = Installation(tmp_path, wheel, "")
    assert "start the run in FILE, or resume it" in installed.trainyard("--help")
    assert "no runs on this machine" in installed.trainyard("get")
    assert installed.trainyard("init", "--list").startswith("quickstart ")
    installed.trainyard("init", "quickstart")
    unchecked = "the values in its config were not checked: pip install 'trainyard[trainer]'"
    said = f"quickstart.yaml: TrainingRun quickstart is valid; {unchecked}"
    assert installed.trainyard("validate", "quickstart.yaml").strip() == said
    manifest = installed.home / "quickstart.yaml"
    good = manifest.read_text()
    manifest.write_text(good.replace("  config:\n", "  config:\n    max_stepz: 9\n"))
    refused = installed.run("trainyard", "validate", "quickstart.yaml")
    manifest.write_text(good)
    assert "config.max_stepz: unknown key; did you mean max_steps?" in refused.stderr
    installed.trainyard("init", "study-char-gpt")
    assert "is valid: " in installed.trainyard("validate", "study-char-gpt.yaml")

    doctor = installed.run("trainyard", "doctor", "-o", "json")
    assert doctor.returncode == 1
    problems = [c for c in json.loads(doctor.stdout)["checks"] if c["level"] == "problem"]
    assert {problem["check"] for problem in problems} == {"extras", "torch", "torchrun"}
    assert {problem["action"] for problem in problems} == {"pip install 'trainyard[trainer]'"}

    model = installed.home / ".trainyard" / "runs" / "done"
    model.mkdir(parents=True)
    run = {"metadata": {"name": "done"}, "spec": {}, "status": {"phase": "Succeeded"}}
    (model / "run.json").write_text(json.dumps(run))
    for command, extra in (
        (("run", "quickstart.yaml"), "trainer"),
        (("study", "study-char-gpt.yaml"), "trainer"),
        (("serve", "done"), "serving"),
        (("dashboard",), "serving"),
    ):
        refused = installed.run("trainyard", *command)
        assert refused.returncode == 2, refused
        (line,) = refused.stderr.splitlines()
        assert f"trainyard {command[0]} needs the {extra} extra" in line
        assert line.endswith(f"pip install 'trainyard[{extra}]'")


@pytest.mark.parametrize("python", [path for path in interpreters() if "3.9" in path])
def test_scripts_in_images_with_an_older_python_import_it(
    wheel: Path, tmp_path: Path, python: str
) -> None:
    installed = Installation(tmp_path, wheel, "", python)
    script = "import trainyard; trainyard.init().report(step=1)"
    imported = installed.run("python", "-c", script)
    assert (imported.returncode, imported.stderr) == (0, "")
    packages = list((tmp_path / "venv" / "lib" / "python3.9" / "site-packages").glob("*.dist-info"))
    assert [path.name.partition("-")[0] for path in packages] == ["trainyard"], "it needs no other"
    command = installed.run("trainyard", "--help")
    assert command.stderr == "the trainyard command needs Python 3.11 or newer\n"
    assert command.returncode == 1


def test_the_operator_extra_starts_the_operator(wheel: Path, tmp_path: Path) -> None:
    installed = Installation(tmp_path, wheel, "[operator]")
    imported = installed.run("python", "-c", "import trainyard_operator.__main__")
    assert imported.returncode == 0, imported.stderr
    assert "usage: trainyard" in installed.trainyard("--help")


def test_quickstart_from_the_wheel_trains_and_answers(wheel: Path, tmp_path: Path) -> None:
    installed = Installation(tmp_path, wheel, "[trainer,serving]")
    written = installed.trainyard("init", "quickstart")
    next_command = re.search(r"next +trainyard (run quickstart.yaml)", written)
    assert next_command
    installed.trainyard("validate", "quickstart.yaml")
    assert "0 problems" in installed.trainyard("doctor")

    manifest = installed.home / "quickstart.yaml"
    run: dict[str, Any] = yaml.safe_load(manifest.read_text())
    run["spec"]["config"] |= {"max_steps": 4, "eval_batches": 1, "warmup_steps": 1}
    manifest.write_text(yaml.safe_dump(run))
    assert "quickstart succeeded" in installed.trainyard(*next_command.group(1).split())
    answer = installed.trainyard("serve", "quickstart", "--prompt", "def ", "--max-tokens", "5")
    assert answer.startswith("def ")
    assert len(answer) > len("def ")
    assert "quickstart" in installed.trainyard("get")
    assert installed.trainyard("delete", "quickstart", "--yes").startswith("deleted quickstart")

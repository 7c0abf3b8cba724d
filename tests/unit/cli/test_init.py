"""`trainyard init`: writes the examples that come with the package, and overwrites nothing."""

from pathlib import Path

import pytest

from trainyard_cli import main as cli
from trainyard_cli.init import NOT_STANDALONE

EXAMPLES = Path(__file__).parents[3] / "examples"
NAMES = sorted({path.stem for path in EXAMPLES.glob("*.yaml")} - NOT_STANDALONE)


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_written_and_valid(
    here: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert cli.main(["init", name]) == 0
    assert f"kubectl apply -f {name}.yaml" in capsys.readouterr().out
    assert [path.name for path in here.iterdir()] == [f"{name}.yaml"]
    assert cli.main(["validate", f"{name}.yaml"]) == 0
    written = Path(f"{name}.yaml").read_text()
    source = (EXAMPLES / f"{name}.yaml").read_text()
    assert "examples/" not in written
    assert written == source.replace("examples/", "")


def test_the_next_command_is_printed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "quickstart"]) == 0
    assert "next    trainyard run quickstart.yaml" in capsys.readouterr().out
    assert cli.main(["init", "study-char-gpt"]) == 0
    assert "next    trainyard study study-char-gpt.yaml" in capsys.readouterr().out


def test_an_existing_file_is_not_overwritten(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("quickstart.yaml").write_text("mine")
    assert cli.main(["init", "quickstart"]) == cli.EXIT_REFUSED
    assert capsys.readouterr().err == (
        "trainyard: quickstart.yaml already exists: move it away first\n"
    )
    assert Path("quickstart.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["init"], "name an example; `trainyard init --list` lists them"),
        (["init", "../quickstart"], "no example named '../quickstart' (examples: quickstart, "),
        (["init", "shakespeare"], "no example named 'shakespeare'"),
    ],
)
def test_an_unknown_example_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli.main(arguments) == cli.EXIT_REFUSED
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert list(here.iterdir()) == []


def test_the_list_has_a_summary_of_each(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(line.split()[0] for line in lines) == NAMES
    assert lines[0].split()[0] == "quickstart"
    assert all(len(line.split()) > 4 for line in lines)

"""The memory that is estimated with fake tensors is what real ranks take, within a tenth."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.manifests.refused import run
from tests.support.trainer import memory
from tests.support.trainer.ranks import RankServer
from trainyard_cli import main as cli
from trainyard_trainer.registry import find_recipe

CASES: list[tuple[str, memory.Mode, int, str, dict[str, Any]]] = [
    ("char-gpt", "fsdp", 1, "fp32", {"activation_checkpointing": True}),
    ("gpt", "ddp", 2, "fp32", {"gradient_accumulation_steps": 2}),
    ("causal-lm-finetune", "fsdp", 2, "bf16", {}),
    ("causal-lm-finetune packed", "ddp", 1, "fp32", {}),
    ("causal-lm-finetune lora", "ddp", 1, "fp32", {"activation_checkpointing": True}),
    ("text-classification", "ddp", 2, "bf16", {}),
    ("image-classification", "ddp", 1, "fp32", {"batch_size": 32}),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return memory.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RankServer]:
    server = memory.measuring_server(tmp_path_factory.mktemp("library"))
    yield server
    server.close()


@pytest.mark.parametrize(
    ("name", "strategy", "ranks", "precision", "changes"), CASES, ids=[case[0] for case in CASES]
)
def test_the_estimate_is_what_real_ranks_take(
    server: RankServer,
    tmp_path: Path,
    runs: dict[str, dict[str, Any]],
    name: str,
    strategy: memory.Mode,
    ranks: int,
    precision: str,
    changes: dict[str, Any],
) -> None:
    config = memory.small(runs[name], ranks) | changes
    mode = ranks, strategy, precision
    found = memory.measured(server, tmp_path, name.partition(" ")[0], config, *mode)
    assert memory.estimated(name.partition(" ")[0], config, *mode) == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("gpt", {"corpus": "/nowhere"}),
        ("causal-lm-finetune", {"dataset": "/nowhere", "from_scratch": False}),
        ("text-classification", {"dataset": "/nowhere", "labels": ["a", "b", "c"]}),
    ],
)
def test_neither_data_nor_weights_are_read(
    runs: dict[str, dict[str, Any]], name: str, missing: dict[str, Any]
) -> None:
    with_data, without = memory.small(runs[name], 1), memory.small(runs[name] | missing, 1)
    expected = memory.estimated(name, with_data, 1, "ddp")
    assert memory.estimated(name, without, 1, "ddp") == expected


def test_outlines_know_the_models_of_recipes(runs: dict[str, dict[str, Any]]) -> None:
    for name, given in runs.items():
        settings = given | {"batch_size": 2}  # packed, the rows are few
        cls = find_recipe(name.partition(" ")[0])
        outline = cls.outline(cls.Config.model_validate(settings))
        whole = cls(cls.Config.model_validate(settings), None)
        sizes = [sum(p.numel() for p in each.build().parameters()) for each in (outline, whole)]
        assert sizes[0] == sizes[1], name


def test_a_run_that_does_not_fit_is_told_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be. " * 500)
    config = {"corpus": "text.txt", "batch_size": 64, "block_size": 64}
    Path("x.yaml").write_text(yaml.safe_dump(run("char-gpt", config)))
    assert cli.main(["estimate", "x.yaml", "--memory", "2080MiB"]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == (
        "good: memory of each rank at the peak of a training step (1 rank, ddp, fp32, 64 samples at"
        " a time)"
    )
    cells = [line.rsplit(maxsplit=2) for line in lines]
    sizes = {name.strip(): int(size) for name, size, unit in cells if unit == "MiB"}
    total = sizes.pop("total")
    assert sizes["optimizer state"] == pytest.approx(2 * sizes["parameters"], abs=1)
    assert sum(sizes.values()) == pytest.approx(total, abs=3)
    assert total > 32
    assert any(line.startswith(f"does not fit: {total} MiB and about 2.0 GiB") for line in lines)
    helps = next(line for line in lines if "gradient_accumulation_steps: " in line)
    assert helps.split()[-1] == "fits"

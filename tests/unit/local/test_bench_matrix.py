"""A bench file becomes cells, each a valid TrainingRun, or is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainyard_api.bench import BenchSpec
from trainyard_operator import cli
from trainyard_operator.bench.cells import expand, label, make_cells, short_names
from trainyard_operator.bench.file import load
from trainyard_operator.local.store import UserError

EXAMPLES = Path(__file__).parents[3] / "examples"
MATRIX: dict[str, Any] = {"strategy": ["ddp", "fsdp"], "numProcPerNode": [1, 2]}
TEMPLATE: dict[str, Any] = {"spec": {"recipe": "char-gpt", "config": {"n_layer": 1}}}


def spec(**changes: Any) -> BenchSpec:
    return BenchSpec.model_validate({"template": TEMPLATE, "matrix": MATRIX} | changes)


def test_every_combination_is_a_cell_in_the_matrixs_order() -> None:
    cells = make_cells(spec())
    assert [(c.values["strategy"], c.values["numProcPerNode"]) for c in cells] == [
        ("ddp", 1),
        ("ddp", 2),
        ("fsdp", 1),
        ("fsdp", 2),
    ]
    assert [cell.number for cell in cells] == [1, 2, 3, 4]
    assert [cell.processes for cell in cells] == [1, 2, 1, 2]
    assert [cell.run.spec.strategy for cell in cells] == ["ddp", "ddp", "fsdp", "fsdp"]
    assert cells[1].label == "ddp, numProcPerNode=2"


def test_excluded_are_cells_that_have_all_values_of_an_entry() -> None:
    bench = spec(
        matrix=MATRIX | {"config.sharding_strategy": ["FULL_SHARD", "SHARD_GRAD_OP"]},
        exclude=[
            {"strategy": "ddp", "config.sharding_strategy": "SHARD_GRAD_OP"},
            {"strategy": "fsdp", "numProcPerNode": 1},
        ],
    )
    assert [tuple(values.values()) for values in expand(bench)] == [
        ("ddp", 1, "FULL_SHARD"),
        ("ddp", 2, "FULL_SHARD"),
        ("fsdp", 2, "FULL_SHARD"),
        ("fsdp", 2, "SHARD_GRAD_OP"),
    ]


def test_null_leaves_a_path_as_the_template_has_it() -> None:
    none, two = make_cells(spec(matrix={"config.n_layer": [None, 2]}))
    assert [cell.run.spec.config and cell.run.spec.config["n_layer"] for cell in (none, two)] == [
        1,
        2,
    ]
    assert [none.label, two.label] == ["the template", "n_layer=2"]


def test_true_and_1_are_two_values() -> None:
    bench = spec(matrix={"config.flag": [1, True]}, exclude=[{"config.flag": True}])
    assert expand(bench) == [{"config.flag": 1}]


def test_a_cell_trains_the_step_budget_and_little_else() -> None:
    template = {
        "spec": {
            "recipe": "char-gpt",
            "config": {"num_epochs": 3, "eval_steps": 5, "learning_rate": 1e-2},
            "storage": {"claimName": "kept"},
            "checkpoint": {"everySteps": 5, "keepLast": 1},
            "suspend": True,
        }
    }
    matrix = {"config.eval_batches": [4], "checkpoint.keepLast": [2]}
    bench = spec(template=template, matrix=matrix, steps=30, warmupSteps=6)
    (cell,) = make_cells(bench)
    run = cell.run.spec
    assert run.config == {
        "learning_rate": 1e-2,
        "max_steps": 36,
        "timing_warmup_steps": 6,
        "eval_on_start": False,
        "eval_steps": 0,
        "eval_batches": 4,  # the matrix has the last word
        "sample_steps": 0,
    }
    assert (run.checkpoint.every_steps, run.checkpoint.keep_last) == (36, 2)
    assert (run.max_restarts, run.storage, run.suspend) == (0, None, False)
    assert bench.template.spec == template["spec"]  # untouched


def test_labels_name_what_varies_and_stay_apart() -> None:
    assert short_names(["config.a.rate", "config.b.rate", "seed"]) == {
        "config.a.rate": "config.a.rate",
        "config.b.rate": "config.b.rate",
        "seed": "seed",
    }
    matrix: dict[str, list[Any]] = {"seed": [1], "config.flag": [False, True]}
    assert label({"seed": 1, "config.flag": True}, matrix) == "flag=true"
    assert label({"seed": 1}, {"seed": [1]}) == "seed=1"


@pytest.mark.parametrize(
    ("changes", "line", "said"),
    [
        ({"matrix": {"strateg": ["ddp"]}}, 2, "matrix.strateg: no such path in a TrainingRun's"),
        ({"matrix": {"strateg": ["ddp"]}}, 2, "did you mean strategy?"),
        ({"matrix": {"lr": [1]}}, 2, "a recipe's settings are config.NAME"),
        ({"matrix": {"strategy": []}}, 2, "matrix.strategy: list at least one value"),
        ({"matrix": {"strategy": ["ddp", "ddp"]}}, 2, "'ddp' is listed twice"),
        ({"matrix": {}}, 1, "matrix: name at least one path"),
        ({"matrix": {"config.max_steps": [9]}}, 2, "steps and warmupSteps set it"),
        ({"matrix": {"checkpoint.everyStep": [9]}}, 2, "checkpoint.everyStep: unknown key"),
        (
            {"matrix": {"seed": [1, 2], "strategy": ["ddp", "dpp"]}},
            5,
            "cell seed=1, dpp (and 1 more): spec.strategy: Input should be 'ddp' or 'fsdp'",
        ),
        ({"exclude": [{"seed": 1}]}, 2, "exclude: seed is not in the matrix"),
        ({"exclude": [{"strategy": "x"}]}, 2, "exclude: strategy is never x, only ddp, fsdp"),
        ({"exclude": [{"strategy": s} for s in MATRIX["strategy"]]}, 1, "leaves no cell to run"),
        ({"template": {"spec": {"command": ["a.py"]}}}, 10, "a recipe is needed"),
        ({"template": {"spec": {"recipe": "x", "config": 3}}}, 10, "spec.config: "),
        ({"repeats": 0}, 8, "repeats: "),
        ({"stepz": 1}, 8, "stepz: unknown key"),
    ],
)
def test_a_bad_bench_is_refused_with_its_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    line: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b.yaml").write_text(yaml.safe_dump({"template": TEMPLATE, "matrix": MATRIX} | changes))
    assert cli.main(["bench", "b.yaml"]) == cli.EXIT_REFUSED
    error = capsys.readouterr().err
    assert error.startswith(f"trainyard: b.yaml:{line}: ")
    assert said in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["b.yaml"]


def test_the_template_may_be_a_manifest_beside_the_file(tmp_path: Path) -> None:
    file, manifest = tmp_path / "My bench.yaml", tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"template": "run.yaml", "matrix": MATRIX, "steps": 7}))
    with pytest.raises(UserError, match=r"run\.yaml: no such file"):
        load(file, {})
    head = "apiVersion: trainyard.dev/v1alpha1\nkind: TrainingRun\nmetadata: {name: x}\n"
    manifest.write_text(head + "spec: {recipe: char-gpt, seed: 5}\n")
    bench, cells = load(file, {"steps": 9})
    assert (bench.name, bench.steps) == ("my-bench", 9)
    assert {cell.run.spec.seed for cell in cells} == {5}


def test_the_example_compares_ddp_and_fsdp() -> None:
    bench, cells = load(EXAMPLES / "bench-cifar10.yaml", {})
    assert bench.name == "cifar10-ddp-fsdp"
    assert len(cells) == 12
    assert [cell.label for cell in (cells[0], cells[-1])] == [
        "ddp, fp32, numProcPerNode=1",
        "fsdp, SHARD_GRAD_OP, bf16, numProcPerNode=2",
    ]

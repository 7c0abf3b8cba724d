"""A study becomes cells, each a valid TrainingRun, or is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainyard_api.run import TrainingRun
from trainyard_api.study import ScalingStudySpec
from trainyard_api.study_status import CellResult
from trainyard_cli import main as cli
from trainyard_local.manifest import load_study
from trainyard_study.cells import Cell, expand, label, make_cells, short_names
from trainyard_study.results import configurations
from trainyard_trainer.config import check_batch_size, parse_config
from trainyard_trainer.registry import find_recipe

EXAMPLES = Path(__file__).parents[3] / "examples"
STUDIES = sorted(EXAMPLES.glob("study-*.yaml"))
HEAD = {
    "apiVersion": "trainyard.dev/v1alpha1",
    "kind": "ScalingStudy",
    "metadata": {"name": "s"},
}
SPEC_LINE = 5  # of `spec:` in what safe_dump makes of a manifest
MATRIX: dict[str, Any] = {"strategy": ["ddp", "fsdp"], "numProcPerNode": [1, 2]}
TEMPLATE: dict[str, Any] = {"spec": {"recipe": "char-gpt", "config": {"n_layer": 1}}}


def spec(**changes: Any) -> ScalingStudySpec:
    return ScalingStudySpec.model_validate({"template": TEMPLATE, "matrix": MATRIX} | changes)


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


def test_cells_with_all_values_of_an_entry_are_excluded() -> None:
    study = spec(
        matrix=MATRIX | {"config.sharding_strategy": ["FULL_SHARD", "SHARD_GRAD_OP"]},
        exclude=[
            {"strategy": "ddp", "config.sharding_strategy": "SHARD_GRAD_OP"},
            {"strategy": "fsdp", "numProcPerNode": 1},
        ],
    )
    assert [tuple(values.values()) for values in expand(study)] == [
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
    study = spec(matrix={"config.flag": [1, True]}, exclude=[{"config.flag": True}])
    assert expand(study) == [{"config.flag": 1}]


def test_a_cell_trains_the_step_budget_without_extras() -> None:
    template = {
        "spec": {
            "recipe": "char-gpt",
            "config": {"num_epochs": 3, "eval_steps": 5, "learning_rate": 1e-2},
            "storage": {"size": "1Gi", "whenDeleted": "Retain"},
            "elastic": {"minNodes": 1, "maxNodes": 2},
            "checkpoint": {"everySteps": 5, "keepLast": 1},
            "suspend": True,
        }
    }
    matrix = {"config.eval_batches": [4], "checkpoint.keepLast": [2]}
    study = spec(template=template, matrix=matrix, steps=30, warmupSteps=6)
    (cell,) = make_cells(study)
    run = cell.run.spec
    assert run.config == {
        "learning_rate": 1e-2,
        "max_steps": 36,
        "timing_warmup_steps": 6,
        "eval_on_start": False,
        "eval_steps": 0,
        "eval_batches": 4,  # the matrix overrides it
        "sample_steps": 0,
    }
    assert (run.checkpoint.every_steps, run.checkpoint.keep_last) == (36, 2)
    assert (run.max_restarts, run.elastic, run.suspend) == (0, None, False)
    assert run.storage is not None
    assert run.storage.to_wire() == {"size": "1Gi", "whenDeleted": "Delete"}
    assert study.template.spec == template["spec"]  # untouched


def threads_of(cell: Cell) -> list[tuple[str, str]]:
    pod = cell.run.spec.pod_template
    assert pod is not None
    (trainer,) = (item for item in pod.spec["containers"] if item["name"] == "trainer")
    return [(entry["name"], entry["value"]) for entry in trainer["env"]]


@pytest.mark.parametrize(
    ("resources", "given", "threads"),
    [
        ({}, None, 1),
        ({"limits": {"cpu": "8"}}, None, 4),
        ({"requests": {"cpu": "500m"}}, None, 1),
        ({"limits": {"cpu": "8"}}, 3, 3),
    ],
)
def test_every_process_of_every_cell_gets_the_same_threads(
    resources: dict[str, Any], given: int | None, threads: int
) -> None:
    template = {"spec": {**TEMPLATE["spec"], "resourcesPerNode": resources}}
    cells = make_cells(spec(template=template), given)
    assert {cell.threads for cell in cells} == {threads}
    assert [threads_of(cell) for cell in cells] == [[("OMP_NUM_THREADS", str(threads))]] * 4


def test_threads_set_in_the_template_are_kept() -> None:
    containers = [
        {"name": "trainer", "env": [{"name": "OMP_NUM_THREADS", "value": "7"}]},
        {"name": "sidecar", "image": "x"},
    ]
    template = {"spec": {**TEMPLATE["spec"], "podTemplate": {"spec": {"containers": containers}}}}
    cell = make_cells(spec(template=template), 2)[0]
    assert (cell.threads, threads_of(cell)) == (7, [("OMP_NUM_THREADS", "7")])
    assert cell.run.spec.pod_template
    assert cell.run.spec.pod_template.spec["containers"] == containers


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "amd.com/gpu"])
def test_each_process_has_its_own_gpu(resource: str) -> None:
    limits = {resource: 4, "cpu": "16"}
    template = {"spec": {**TEMPLATE["spec"], "resourcesPerNode": {"limits": limits}}}
    cells = make_cells(spec(template=template, matrix={"numProcPerNode": [1, 4]}))
    assert [cell.run.gpus_per_node for cell in cells] == [1, 4]
    assert {cell.threads for cell in cells} == {4}


def test_labels_name_what_varies_and_are_distinct() -> None:
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
        ({"matrix": {"lr": [1]}}, 2, "recipe settings are config.NAME"),
        ({"matrix": {"strategy": []}}, 2, "matrix.strategy: list at least one value"),
        ({"matrix": {"strategy": ["ddp", "ddp"]}}, 2, "'ddp' is listed twice"),
        ({"matrix": {}}, 1, "matrix: name at least one path"),
        ({"matrix": {"config.max_steps": [9]}}, 2, "set by steps and warmupSteps"),
        ({"matrix": {"checkpoint.everyStep": [9]}}, 2, "checkpoint.everyStep: unknown key"),
        (
            {"matrix": {"seed": [1, 2], "strategy": ["ddp", "dpp"]}},
            5,
            "cell seed=1, dpp (and 1 more): spec.strategy: Input should be 'ddp' or 'fsdp'",
        ),
        ({"exclude": [{"seed": 1}]}, 2, "exclude: seed is not in the matrix"),
        (
            {"exclude": [{"strategy": "x"}]},
            2,
            "exclude: strategy is never x in the matrix, only ddp, fsdp",
        ),
        ({"exclude": [{"strategy": s} for s in MATRIX["strategy"]]}, 1, "leaves no cell to run"),
        ({"template": {"spec": {"command": ["a.py"]}}}, 10, "a recipe is required"),
        (
            {"template": {"spec": {"recipe": "x", "storage": {"claimName": "kept"}}}},
            12,
            "remove claimName: each run of a study gets its own volume",
        ),
        ({"repeats": 100, "matrix": {"seed": [*range(11)]}}, 1, "11 cells x 100 repeats exceed"),
        (
            {"matrix": {f"config.{x}": [*range(64)] for x in "abc"}},
            1,
            "262144 cells x 3 repeats exceed the maximum of 1000 runs",
        ),
        ({"cost": {"perProcessHour": -1}}, 2, "cost.perProcessHour: must not be negative"),
        ({"template": {"spec": {"recipe": "x", "config": 3}}}, 10, "spec.config: "),
        ({"repeats": 0}, 8, "repeats: "),
        ({"stepz": 1}, 8, "stepz: unknown key"),
    ],
)
def test_a_bad_study_is_refused_with_its_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    line: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = HEAD | {"spec": {"template": TEMPLATE, "matrix": MATRIX} | changes}
    Path("s.yaml").write_text(yaml.safe_dump(manifest))
    assert cli.main(["study", "s.yaml"]) == cli.EXIT_REFUSED
    error = capsys.readouterr().err
    assert error.startswith(f"trainyard: s.yaml:{line + SPEC_LINE}: "), error
    assert said in error
    assert len(error.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    spec = {"template": TEMPLATE, "matrix": MATRIX, "steps": 7}
    file.write_text(yaml.safe_dump(HEAD | {"spec": spec}))
    study, cells = load_study(file, {"repeats": 9})
    assert (study.spec.steps, study.spec.repeats, len(cells)) == (7, 9, 4)


def test_a_manifest_of_the_other_kind_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(yaml.safe_dump(HEAD | {"kind": "TrainingRun", "spec": {}}))
    Path("s.yaml").write_text(yaml.safe_dump(HEAD | {"spec": {}}))
    assert cli.main(["study", "r.yaml"]) == cli.main(["run", "s.yaml"]) == cli.EXIT_REFUSED
    errors = capsys.readouterr().err
    assert "use `trainyard run r.yaml`" in errors
    assert "use `trainyard study s.yaml`" in errors


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_examples_are_studies(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", str(path)]) == 0
    assert "is valid" in capsys.readouterr().out
    study, cells = load_study(path)
    for cell in cells:
        check_batch_size(job_config(cell.run), cell.processes)
    assert len(configurations(results(cells))) < len(cells), "nothing is measured at two sizes"
    assert study.spec.steps > study.spec.warmup_steps


def test_the_cifar10_study_compares_ddp_and_fsdp() -> None:
    study, cells = load_study(EXAMPLES / "study-cifar10.yaml")
    assert study.name == "cifar10-ddp-fsdp"
    assert len(cells) == 12
    assert [cell.label for cell in (cells[0], cells[-1])] == [
        "ddp, fp32, numProcPerNode=1",
        "fsdp, SHARD_GRAD_OP, bf16, numProcPerNode=2",
    ]


def job_config(run: TrainingRun) -> Any:
    """The recipe's own settings; unknown ones are errors."""
    assert run.spec.recipe
    return parse_config(find_recipe(run.spec.recipe).Config, run.spec.config or {})


def results(cells: list[Cell]) -> list[CellResult]:
    return [
        CellResult(number=c.number, values=c.values, label=c.label, processes=c.processes)
        for c in cells
    ]

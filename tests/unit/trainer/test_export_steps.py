"""Models exported during training, for servers that follow the run."""

from collections.abc import Callable
from typing import Any

from trainyard_api.checkpoint import MODELS
from trainyard_api.golden import GoldenText, read_golden
from trainyard_api.job import TrainerJob
from trainyard_storage.checkpoints import file_sha256, steps, verify

MakeJob = Callable[..., TrainerJob]


def test_exports_on_the_way_change_no_bit_of_the_run(
    make_job: MakeJob, train: Any, tmp_path: Any
) -> None:
    """With dropout, so that any random number used up would show; sharded, so that all must help,
    while checkpoints are written in the background."""

    def run(name: str, **config: Any) -> Any:
        job = {"run_dir": str(tmp_path / name), "strategy": "fsdp"}
        return train(make_job(job, max_steps=8, **config), ranks=2)

    plain, exporting = run("plain"), run("exporting", export_steps=2)
    assert exporting.losses() == plain.losses()
    (last,) = steps(plain.run_dir / MODELS)
    models = list(steps(exporting.run_dir / MODELS))
    # The last ones stay: a server may be reading the one before the newest.
    names = [path.name for path in models]
    assert names == ["step-00000008", "step-00000006", "step-00000004"]
    weights = [file_sha256(path / "model.safetensors") for path in models]
    assert weights[0] == file_sha256(last / "model.safetensors")
    assert len(set(weights)) == 3
    for directory in models:
        assert verify(directory).total_steps == 8
        golden = read_golden(directory, GoldenText)
        assert golden
        assert len(golden.next_ids) == len(golden.top_logits) == 4

"""Whether training on the device is right: its losses, what compiles, and exact resuming."""

from collections.abc import Iterator
from typing import Any

from tests.gpu.rows import Row, close, falls, not_here, same, says
from tests.gpu.setting import STEPS, Device, Setting
from tests.support.trainer.checkpoint_tensors import digests

KILLED = 12  # steps done; the newest checkpoint then is of step 10
# Nats that a loss of these runs may be off in any step. In fp32 only the order of sums differs;
# TF32 has 10 bits of fraction, as fp16 has, and bf16 has 7. On a CPU bf16 is 0.003 off.
ORDER, TF32, FP16, BF16 = 1e-3, 5e-3, 5e-3, 1e-2
EXACT = {"deterministic": True}  # which also keeps TF32 out
RANDOM = EXACT | {"dropout": 0.1}


def losses(setting: Setting) -> Iterator[Row]:
    """The losses of every precision and strategy beside the CPU's."""
    reference = setting.train(setting.job("fp32 of the CPU", "cpu")).losses()
    yield falls("loss of the CPU after 20 steps", reference, reference[1] - 0.2)
    variants: list[tuple[str, dict[str, Any], float]] = [
        ("fp32, deterministic", {"config": EXACT}, ORDER),
        ("fp32", {}, TF32),
        ("fp16", {"precision": "fp16"}, FP16),
        ("bf16", {"precision": "bf16"}, BF16),
        ("fp32, FSDP of one", {"strategy": "fsdp"}, TF32),
        ("bf16, FSDP of one", {"strategy": "fsdp", "precision": "bf16"}, BF16),
        ("fp32, checkpointing", {"config": {"activation_checkpointing": True}}, TF32),
    ]
    for name, changes, tolerance in variants:
        found = setting.train(setting.job(name, **changes)).losses()
        yield close(f"losses of {name}, beside the CPU's", found, reference, tolerance)


def compiling(setting: Setting) -> Iterator[Row]:
    """What is compiled, and that it computes the same."""
    for strategy in ("ddp", "fsdp"):
        name = f"bf16, {strategy}"
        fields: dict[str, Any] = {"precision": "bf16", "strategy": strategy}
        eager = setting.train(setting.job(f"{name}, eager", **fields))
        compiled = setting.train(
            setting.job(f"{name}, compiled", config={"compile": True}, **fields)
        )
        every = r"^compiled: \d+ blocks, the embedding, the final norm and the loss$"
        yield says(f"what is compiled of {name}", compiled.out, every)
        what = f"losses of {name}, compiled, beside eager"
        yield close(what, compiled.losses(), eager.losses(), BF16)


def resuming(setting: Setting) -> Iterator[Row]:
    """Killed and resumed with `deterministic`, a run is bitwise the one that was never killed."""
    cases: list[tuple[str, dict[str, Any]]] = [
        ("fp32", {"config": RANDOM}),
        ("bf16, compiled", {"precision": "bf16", "config": RANDOM | {"compile": True}}),
        ("bf16, FSDP", {"precision": "bf16", "strategy": "fsdp", "config": RANDOM}),
    ]
    for name, changes in cases:
        whole = setting.train(setting.job(f"{name}, never killed", **changes))
        job = setting.job(f"{name}, killed", **changes)
        setting.run(job, f"kill:{KILLED}")
        resumed = setting.train(job)
        yield says(f"{name}: it resumes", resumed.out, "resuming from step 10")
        states = [digests(run.run_dir, STEPS) for run in (resumed, whole)]
        yield same(f"{name}: tensors of the last checkpoint, bitwise", *states)
        yield same(f"{name}: losses of all steps, bitwise", resumed.losses(), whole.losses())


def moving(setting: Setting) -> Iterator[Row]:
    """A checkpoint of a CPU resumes on a GPU, and the other way round."""
    if not setting.on_gpu:
        yield not_here("checkpoints between CPU and GPU", "the same losses")
    directions: list[tuple[Device, Device]] = [("cpu", setting.device), (setting.device, "cpu")]
    for first, second in directions if setting.on_gpu else directions[:1]:
        name = f"{first} to {second}"
        whole = setting.train(setting.job(f"{name}, only {first}", first, config=EXACT))
        setting.run(setting.job(name, first, config=EXACT), f"kill:{KILLED}")
        moved = setting.train(setting.job(name, second, config=EXACT))
        yield says(f"{name}: it resumes", moved.out, "resuming from step 10")
        yield close(f"{name}: losses beside one device's", moved.losses(), whole.losses(), ORDER)

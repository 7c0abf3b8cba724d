"""Tokens per second of GPT-2 beside a plain loop in the same run, and its memory as estimated."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from tests.bench import versus
from tests.bench.gpt_job import GPT2_SHAPE, gpt_job
from tests.gpu.checkout import ROOT
from tests.gpu.rows import Row, at_least, figure, near, not_here
from tests.gpu.setting import SMALL_BACKEND, Setting, last_line
from tests.support.sdk.scripts import run_ranks
from tests.support.trainer import memory

PLAIN_LOOP = ROOT / "tests/bench/plain_loop.py"
GPT2 = GPT2_SHAPE | {"block_size": 1024}
TINY = {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "pad_vocab_to_multiple_of": 512}
# Dense bf16 peaks in TFLOP/s, from NVIDIA's data sheets; part of the device's name -> peak.
PEAKS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
    "A10G": 70,
}
RUN = argparse.Namespace(steps=80, warmup=20, batch_size=32)
SMALL_RUN = argparse.Namespace(steps=30, warmup=20, batch_size=4)
MFU_AIM = 0.45
RATIO_AIM = 0.99  # of the plain loop's tokens per second


def flop_per_token(shape: dict[str, int]) -> float:
    """Of a GPT, forward and backward, attention included (PaLM's count, Chowdhery et al., 2022).

    6 for each weight that is multiplied (of the embeddings only the output layer's) and for each
    pair of tokens of the context and each channel 12 in every layer.
    """
    layers, width = shape["n_layer"], shape["n_embd"]
    blocks = layers * (12 * width**2 + 13 * width) + 2 * width
    weights = shape["pad_vocab_to_multiple_of"] * width + blocks
    return 6.0 * weights + 12.0 * layers * width * shape["block_size"]


@dataclass(frozen=True)
class Contender:
    """One way to train. `compiled`, `strategy`: the trainer's; the plain loop has no strategy."""

    name: str
    compiled: bool
    strategy: Literal["ddp", "fsdp"] | None


PLAIN = [Contender("plain loop, eager", False, None), Contender("plain loop, compiled", True, None)]
CONTENDERS = [
    *PLAIN,
    Contender("trainer, eager", False, "ddp"),
    Contender("trainer, compiled", True, "ddp"),
    Contender("trainer, compiled, FSDP", True, "fsdp"),
]


def throughput(setting: Setting) -> Iterator[Row]:
    """Every contender's rate, those of the trainer beside the plain loop's, and their MFU."""
    shape = TINY if setting.small else GPT2
    sizes = SMALL_RUN if setting.small else RUN
    peak = _peak(setting)
    rates: dict[Contender, float] = {}
    for contender in CONTENDERS:
        measure = _plain if contender.strategy is None else _trainer
        rate = measure(setting, contender, shape, sizes) * shape["block_size"]
        rates[contender] = rate
        yield figure(f"{contender.name}: rate", rate, "tokens/s")
        what, aims = f"{contender.name}: MFU", contender.compiled and contender.strategy == "ddp"
        if peak is None:
            yield not_here(what, f">= {MFU_AIM:.1%}" if aims else "a figure")
            continue
        share = rate * flop_per_token(shape) / peak
        yield at_least(what, share, MFU_AIM, "%") if aims else figure(what, share, "%")
    for contender in CONTENDERS[len(PLAIN) :]:
        (plain,) = (each for each in PLAIN if each.compiled == contender.compiled)
        ratio = rates[contender] / rates[plain]
        what = f"{contender.name} / {plain.name}"
        if setting.small:  # a few steps on whatever machine tell nothing
            yield figure(what, ratio, "")
        else:
            yield at_least(what, ratio, RATIO_AIM)


def peak_memory(setting: Setting) -> Iterator[Row]:
    """The peak of a rank beside `trainyard estimate`'s, which may be a tenth off."""
    shape = TINY if setting.small else GPT2
    folder = setting.new_folder("memory")
    job = gpt_job(folder, shape | {"batch_size": 8, "max_steps": 3})
    modes: list[tuple[memory.Mode, bool]] = [("ddp", False), ("ddp", True), ("fsdp", False)]
    for strategy, checkpointing in modes:
        config = job.config | {"activation_checkpointing": checkpointing}
        name = f"{strategy}{', checkpointing' if checkpointing else ''}"
        setting.say(f"memory of {name}")
        own = folder / name
        own.mkdir()
        mode = 1, strategy, "bf16"
        found = memory.measured(
            setting.server, own, "gpt", config, *mode, require_gpu=setting.on_gpu
        )
        expected = memory.estimated("gpt", config, *mode)
        yield near(f"peak memory: {name}", found / 2**20, expected / 2**20, 0.1, "MiB")


def _trainer(
    setting: Setting, contender: Contender, shape: dict[str, int], sizes: argparse.Namespace
) -> float:
    """Samples per second of the trainer, with reports, and a checkpoint at the end."""
    config = {
        "batch_size": sizes.batch_size,
        "max_steps": sizes.steps,
        "learning_rate": 6e-4,
        "compile": contender.compiled,
    }
    job = gpt_job(
        setting.new_folder(contender.name),
        shape | config,
        run=contender.name,
        strategy=contender.strategy,
        precision="bf16",
        require_gpu=setting.on_gpu,
        checkpoint={"everySteps": sizes.steps, "keepLast": 1},
    )
    history = setting.train(job).history()
    return versus.result(history, sizes.warmup, sizes.batch_size).rate


def _plain(
    setting: Setting, contender: Contender, shape: dict[str, int], sizes: argparse.Namespace
) -> float:
    """Samples per second of the plain loop, on the same tokens."""
    setting.say(contender.name)
    folder = setting.new_folder(contender.name)
    job = gpt_job(folder, shape)
    values: dict[str, object] = {
        name: shape[name] for name in ("block_size", "n_layer", "n_head", "n_embd")
    }
    values |= vars(sizes) | {"vocab_size": shape["pad_vocab_to_multiple_of"]}
    values |= {"tokens": job.config["corpus"], "device": setting.device, "precision": "bf16"}
    if contender.compiled:
        values["compile"] = SMALL_BACKEND if setting.small else "inductor"
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    variables = {"TRAINYARD_RUN_DIR": str(folder)}
    (code,), out, errors = run_ranks(setting.server, PLAIN_LOOP, arguments, variables)
    if code:
        raise RuntimeError(f"{contender.name} failed: {last_line(errors)}")
    return float(json.loads(last_line(out))["samples_per_second"])


def _peak(setting: Setting) -> float | None:
    """FLOP per second that the GPU can do; None for a CPU or a GPU that is not known here."""
    if not setting.on_gpu:
        return None
    name = torch.cuda.get_device_name()
    return next((peak * 1e12 for part, peak in PEAKS.items() if part in name), None)

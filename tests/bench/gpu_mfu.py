"""Tokens per second and model FLOP utilisation (MFU) of GPT-2 124M on one GPU: compiled, bf16.

    python -m tests.bench.gpu_mfu [--batch-size 32] [--steps 200]

Needs an NVIDIA GPU. Runs the trainer as users do, with reports and a checkpoint at the end; timed
from the end of the warm-up steps, in which torch.compile works, to the last step. MFU counts 854.8
MFLOP for a token at a context of 1,024 (forward and backward, attention included) against the GPU's
dense bf16 peak.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FLOP_PER_TOKEN = 854.8e6
BLOCK_SIZE = 1024
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--warmup", type=int, default=50, help="a multiple of 10")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences of 1,024 tokens")
    parser.add_argument("--peak-tflops", type=float, help="of a GPU not known here")
    options = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        sys.exit("needs a GPU: PyTorch finds none here")
    name = torch.cuda.get_device_name()
    known = next((peak for part, peak in PEAKS.items() if part in name), None)
    peak = options.peak_tflops or known
    if peak is None:
        sys.exit(f"the bf16 peak of {name} is not known here: give --peak-tflops")

    from tests.bench.gpt_job import GPT2_SHAPE, gpt_job

    with tempfile.TemporaryDirectory() as folder:
        job = gpt_job(
            Path(folder),
            GPT2_SHAPE
            | {"block_size": BLOCK_SIZE, "batch_size": options.batch_size, "compile": True}
            | {"max_steps": options.steps, "learning_rate": 6e-4, "warmup_steps": 20}
            | {"dataloader_num_workers": 1},
            precision="bf16",
            require_gpu=True,
            checkpoint={"everySteps": options.steps, "keepLast": 1},
        )
        env = os.environ | {"TRAINYARD_JOB": job.model_dump_json(by_alias=True)}
        subprocess.run([sys.executable, "-m", "trainyard_trainer"], env=env, check=True)
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    logged = {line["step"]: line for line in map(json.loads, lines) if "loss" in line}
    seconds = logged[options.steps]["time"] - logged[options.warmup]["time"]
    tokens = (options.steps - options.warmup) * options.batch_size * BLOCK_SIZE
    rate = tokens / seconds
    print(f"{name}, PyTorch {torch.__version__}, batch {options.batch_size} x {BLOCK_SIZE}")
    print(f"{rate:,.0f} tokens/s, {seconds / (options.steps - options.warmup) * 1e3:.1f} ms a step")
    print(f"MFU {rate * FLOP_PER_TOKEN / (peak * 1e12):.1%} of {peak:g} TFLOP/s (aim 45%)")


if __name__ == "__main__":
    main()

"""The Hugging Face Trainer on GPT2LMHeadModel, as its users write it; for lm_throughput.py.

Prints one JSON line: sequences per second after the warm-up steps, and the last logged loss.
"""

import argparse
import json
import tempfile
import time
from typing import Any

import numpy as np
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

parser = argparse.ArgumentParser()
parser.add_argument("--tokens", required=True, help="a .npy file of token ids")
parser.add_argument("--vocab-size", type=int, required=True)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--warmup", type=int, default=40, help="steps that aren't timed")
parser.add_argument("--save-every", type=int, default=50)
parser.add_argument("--batch-size", type=int, default=12, help="sequences per process")
parser.add_argument("--block-size", type=int, default=64)
parser.add_argument("--n-layer", type=int, default=4)
parser.add_argument("--n-head", type=int, default=4)
parser.add_argument("--n-embd", type=int, default=128)
args = parser.parse_args()


class Windows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Stretches of the token file, one after another."""

    def __init__(self) -> None:
        self.tokens = np.load(args.tokens, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.tokens) // int(args.block_size)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * args.block_size
        window = self.tokens[start : start + args.block_size].astype(np.int64)
        ids = torch.from_numpy(window)
        return {"input_ids": ids, "labels": ids}  # the model shifts the labels itself


class Clock(TrainerCallback):
    """Notes when the warm-up and the last step were done."""

    def __init__(self) -> None:
        self.times: dict[int, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.times[state.global_step] = time.time()


set_seed(1337)
model = GPT2LMHeadModel(
    GPT2Config(
        vocab_size=args.vocab_size,
        n_positions=args.block_size,
        n_layer=args.n_layer,
        n_head=args.n_head,
        n_embd=args.n_embd,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
)
clock = Clock()
with tempfile.TemporaryDirectory() as folder:
    settings = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=args.batch_size,
        max_steps=args.steps,
        learning_rate=1e-3,
        lr_scheduler_type="cosine",
        weight_decay=0.1,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_steps=10,
        save_steps=args.save_every,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        ddp_find_unused_parameters=False,
    )
    trainer = Trainer(model, settings, train_dataset=Windows(), callbacks=[clock])
    trainer.train()
    seconds = clock.times[args.steps] - clock.times[args.warmup]
    sequences = (args.steps - args.warmup) * args.batch_size * settings.world_size
    if settings.process_index == 0:
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        print(json.dumps({"samples_per_second": sequences / seconds, "loss": losses[-1]}))

"""A script as a user of transformers writes it: it knows nothing of Trainyard."""

import os
import sys
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

STEPS, EVAL_STEPS = int(sys.argv[1]), int(sys.argv[2])


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


config = GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64, n_positions=32)
arguments = TrainingArguments(
    "/tmp/trainer-output",
    max_steps=STEPS,
    per_device_train_batch_size=4,
    logging_steps=10,
    eval_strategy="steps",
    eval_steps=EVAL_STEPS,
    save_strategy="no",
    include_num_input_tokens_seen="all",
    use_cpu=True,
    disable_tqdm=True,
)
Trainer(GPT2LMHeadModel(config), arguments, train_dataset=Rows(4000), eval_dataset=Rows(40)).train()
torch.distributed.destroy_process_group()
os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down

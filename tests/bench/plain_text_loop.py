"""The yardstick for texts: a plain training loop in one file, as one writes it for AG News.

The same DistilBERT, tokens, batch, optimizer and schedule as recipe text-classification, and
nothing else: no resuming, no evaluation, no reports, no checkpoints. Under torchrun the same with
DistributedDataParallel. Prints one JSON line: samples per second of all processes after the warm-up
steps, and the last loss.
"""

import argparse
import json
import math
import os
import time

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from pyarrow import parquet  # type: ignore[import-untyped]
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, DistilBertConfig, DistilBertForSequenceClassification

parser = argparse.ArgumentParser()
parser.add_argument("--dataset", required=True, help="a directory with train.parquet")
parser.add_argument("--tokenizer", required=True, help="Hub id or directory")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--warmup", type=int, default=20, help="steps that aren't timed")
parser.add_argument("--batch-size", type=int, default=32, help="texts per process")
parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--max-length", type=int, default=128)
parser.add_argument("--n-layers", type=int, default=2)
parser.add_argument("--n-heads", type=int, default=4)
parser.add_argument("--dim", type=int, default=128)
parser.add_argument("--hidden-dim", type=int, default=512)
args = parser.parse_args()
rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
if world_size > 1:
    dist.init_process_group("gloo")
torch.manual_seed(1337)

# Data: all texts tokenised once, each as long as it is; a batch is padded to its longest.
rows = parquet.read_table(f"{args.dataset}/train.parquet", columns=["text", "label"])
tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
encoded = tokenizer(rows["text"].to_pylist(), truncation=True, max_length=args.max_length)
texts = [torch.tensor(ids) for ids in encoded["input_ids"]]
labels = torch.tensor(rows["label"].to_pylist())
order = torch.randperm(len(texts))


def get_batch(step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids and mask, each (B, T), and labels, (B,)."""
    start = (step * world_size + rank) * args.batch_size
    ids = order[torch.arange(start, start + args.batch_size) % len(order)]
    x = pad_sequence([texts[i] for i in ids], batch_first=True, padding_value=0)
    return x, x != 0, labels[ids]


shape = DistilBertConfig(
    vocab_size=len(tokenizer),
    max_position_embeddings=args.max_length,
    n_layers=args.n_layers,
    n_heads=args.n_heads,
    dim=args.dim,
    hidden_dim=args.hidden_dim,
)
shape.num_labels = int(labels.max()) + 1
model: nn.Module = DistilBertForSequenceClassification(shape).train()
if world_size > 1:
    model = nn.parallel.DistributedDataParallel(model)
groups = [
    {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.01},
    {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16")
loss = torch.zeros(())
began = time.time()
for step in range(args.steps):
    if step == args.warmup:
        began = time.time()
    for group in optimizer.param_groups:
        group["lr"] = 1e-4 + 9e-4 * (1 + math.cos(math.pi * step / args.steps)) / 2
    x, mask, y = get_batch(step)
    with autocast:
        loss = F.cross_entropy(model(input_ids=x, attention_mask=mask).logits.float(), y)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step % 10 == 0:
        loss.item()
seconds = time.time() - began
rate = (args.steps - args.warmup) * args.batch_size * world_size / seconds
if rank == 0:
    print(json.dumps({"samples_per_second": rate, "loss": loss.item()}))
if world_size > 1:
    dist.destroy_process_group()

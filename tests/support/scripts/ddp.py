"""A loop as a user of PyTorch writes it, after nanoGPT: it knows nothing of Trainyard."""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

STEPS = int(sys.argv[1])
VOCABULARY, CONTEXT, WIDTH, HEADS = 64, 32, 32, 2


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])
        self.attention = nn.Linear(WIDTH, 3 * WIDTH)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        heads = self.attention(self.norms[0](x)).view(batch, length, 3, HEADS, WIDTH // HEADS)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        mixed: torch.Tensor = x + self.mlp(self.norms[1](x))
        return mixed


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        logits = self.head(self.blocks(x))
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


dist.init_process_group("gloo")
rank = int(os.environ["RANK"])
torch.manual_seed(rank)
data = torch.arange(10_000) % 61 % VOCABULARY
model = DistributedDataParallel(GPT())
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
for step in range(1, STEPS + 1):
    starts = torch.randint(len(data) - CONTEXT - 1, (8,))
    ids = torch.stack([data[start : start + CONTEXT] for start in starts])
    targets = torch.stack([data[start + 1 : start + CONTEXT + 1] for start in starts])
    loss = model(ids, targets)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if rank == 0 and step % 20 == 0:
        print(f"iter {step}: loss {loss.item():.4f}", flush=True)
dist.destroy_process_group()
os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down

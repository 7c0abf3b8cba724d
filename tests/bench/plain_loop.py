"""The yardstick: a GPT trained by a plain loop, as nanoGPT writes one; see plain.py.

The same model, batch, optimizer, schedule and clipping as recipe gpt; on a GPU if it is told to,
with what everybody does there: autocast, torch.compile, pinned batches.
"""

from typing import cast

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from tests.bench.plain import options, rank, train

parser = options()
parser.add_argument("--tokens", required=True, help="a .npy file of token ids")
parser.add_argument("--vocab-size", type=int, required=True)
parser.add_argument("--block-size", type=int, default=64)
parser.add_argument("--n-layer", type=int, default=4)
parser.add_argument("--n-head", type=int, default=4)
parser.add_argument("--n-embd", type=int, default=128)
parser.add_argument("--device", default="cpu")
parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
parser.add_argument("--compile", metavar="BACKEND", help="such as inductor")
args = parser.parse_args()
torch.manual_seed(1337)
data = np.load(args.tokens, mmap_mode="r")
generator = torch.Generator().manual_seed(rank)


def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
    T = args.block_size
    starts = torch.randint(len(data) - T, (args.batch_size,), generator=generator)
    x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in starts])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in starts])
    if args.device != "cpu":
        x = x.pin_memory().to(args.device, non_blocking=True)
        y = y.pin_memory().to(args.device, non_blocking=True)
    return x, y


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        n = args.n_embd
        self.ln_1, self.ln_2 = nn.LayerNorm(n), nn.LayerNorm(n)
        self.qkv, self.proj = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.up, self.down = nn.Linear(n, 4 * n), nn.Linear(4 * n, n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.qkv(self.ln_1(x)).split(C, dim=2)
        q, k, v = (t.view(B, T, args.n_head, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).contiguous().view(B, T, C))
        y = self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))
        return torch.add(x, y)


class GPT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(args.vocab_size, args.n_embd)
        self.wpe = nn.Embedding(args.block_size, args.n_embd)
        self.blocks = nn.ModuleList(Block() for _ in range(args.n_layer))
        self.ln_f = nn.LayerNorm(args.n_embd)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        logits = F.linear(self.ln_f(h), self.wte.weight)
        loss: torch.Tensor = F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))
        return loss


def compute_loss(model: nn.Module, _step: int) -> torch.Tensor:
    x, y = get_batch()
    with torch.autocast(args.device, torch.bfloat16, enabled=args.precision == "bf16"):
        loss: torch.Tensor = model(x, y)
    return loss


gpt: nn.Module = GPT().to(args.device)
train(
    args,
    cast(nn.Module, torch.compile(gpt, backend=args.compile)) if args.compile else gpt,
    compute_loss,
    lambda groups: torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True),
    weight_decay=0.1,
    last_lr=1e-4,
)

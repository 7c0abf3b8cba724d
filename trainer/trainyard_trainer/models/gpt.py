"""GPT-2's architecture with GPT-2's parameter names, and its export for Hugging Face.

Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. Shapes in comments:
B sequences, T positions, V tokens in the vocabulary, C = n_embd channels, H heads.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainyard_storage.files import write_json
from trainyard_trainer.models.cross_entropy import chunk_loss, linear_cross_entropy


@dataclass(frozen=True)
class GPTShape:
    """Sizes of the model."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float = 0.0


class Attention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.n_head = shape.n_head
        self.dropout = shape.dropout
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd)  # query, key and value at once
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)  # (B, H, T, C/H)
            for part in self.c_attn(x).split(C, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """Position-wise feed-forward network with a hidden layer of 4 C."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.dropout = shape.dropout
        self.c_fc = nn.Linear(shape.n_embd, 4 * shape.n_embd)
        self.c_proj = nn.Linear(4 * shape.n_embd, shape.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return F.dropout(x, self.dropout, self.training)


class Block(nn.Module):
    """One layer: attention and MLP, each on a normalised input and added to the residual."""

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.n_embd)
        self.attn = Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.n_embd)
        self.mlp = MLP(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + cast(Tensor, self.mlp(self.ln_2(x)))


class GPT(nn.Module):
    """Decoder-only transformer; the output layer shares the token embedding's weights."""

    chunk_loss = staticmethod(chunk_loss)

    def __init__(self, shape: GPTShape) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)  # token embeddings
        self.wpe = nn.Embedding(shape.block_size, shape.n_embd)  # position embeddings
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd)
        self._initialise()

    def _initialise(self) -> None:
        """N(0, 0.02), the residual projections smaller so that depth doesn't grow the variance."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.dim() == 2:
                std = 0.02
                if name.endswith("c_proj.weight"):
                    std /= (2 * self.shape.n_layer) ** 0.5
                nn.init.normal_(parameter, std=std)

    def forward(
        self, ids: Tensor, targets: Tensor | None = None, logits_to_keep: int | None = None
    ) -> Tensor:
        """Token ids (B, T) -> logits of the next token (B, T, V), or of the last positions only.

        With `targets` (B, T), the next tokens: the mean loss in nats per token, 0-d.
        """
        x = self.embed(ids)
        for block in self.h:
            x = block(x)
        if targets is not None:
            return linear_cross_entropy(self.ln_f(x), self.wte.weight, targets, self.chunk_loss)
        if logits_to_keep is not None:
            x = x[:, -logits_to_keep:]
        return F.linear(self.ln_f(x), self.wte.weight)

    def embed(self, ids: Tensor) -> Tensor:
        """Token ids (B, T) -> the residual stream before the first block (B, T, C)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(positions)
        x = F.dropout(x, self.shape.dropout, self.training)
        device = ids.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16:
            # All blocks then add in bf16, as under FSDP, and move half the bytes; autocast alone
            # keeps the sums in fp32. Not in fp16, which large activations overflow.
            x = x.bfloat16()
        return x

    @torch.no_grad()
    def generate(
        self, ids: Tensor, num_tokens: int, generator: torch.Generator, temperature: float = 0.8
    ) -> Tensor:
        """`ids` (B, T) and `num_tokens` sampled after them; the generator is on the CPU."""
        for _ in range(num_tokens):
            logits = self(ids[:, -self.shape.block_size :], logits_to_keep=1)[:, 0]
            probabilities = F.softmax(logits.float().cpu() / temperature, dim=-1)
            chosen = torch.multinomial(probabilities, 1, generator=generator)
            ids = torch.cat([ids, chosen.to(ids.device)], dim=1)
        return ids


# transformers stores these as Conv1D, transposed.
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_gpt2(
    weights: dict[str, Tensor], shape: GPTShape, directory: Path, eos_id: int | None = None
) -> None:
    """Write model.safetensors, config.json and generation_config.json into `directory`.

    `eos_id`: the token between texts; both bos_token_id and eos_token_id.
    """
    from safetensors.torch import save_file

    tensors = {
        f"transformer.{name}": (tensor.t() if name.endswith(_CONV1D) else tensor).contiguous()
        for name, tensor in weights.items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",  # the tanh approximation
        "vocab_size": shape.vocab_size,
        "n_positions": shape.block_size,
        "n_ctx": shape.block_size,
        "n_layer": shape.n_layer,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "n_inner": None,
        "attn_pdrop": shape.dropout,
        "embd_pdrop": shape.dropout,
        "resid_pdrop": shape.dropout,
        "layer_norm_epsilon": 1e-05,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "dtype": "float32",
    }
    write_json(directory / "config.json", config)
    generation = {"do_sample": True, "temperature": 0.8, "max_new_tokens": 200}
    write_json(directory / "generation_config.json", generation)


def read_gpt2(directory: Path) -> GPT:
    """The model that `write_gpt2` wrote, in evaluation mode.

    Without transformers, whose import takes seconds and 200 MB, at the end of every run.
    """
    from safetensors.torch import load_file

    config = json.loads((directory / "config.json").read_bytes())
    shape = GPTShape(
        vocab_size=config["vocab_size"],
        block_size=config["n_positions"],
        n_layer=config["n_layer"],
        n_head=config["n_head"],
        n_embd=config["n_embd"],
    )
    with torch.device("meta"):
        model = GPT(shape)
    tensors = load_file(directory / "model.safetensors")
    weights = {
        name.removeprefix("transformer."): tensor.t() if name.endswith(_CONV1D) else tensor
        for name, tensor in tensors.items()
    }
    model.load_state_dict(weights, assign=True)
    return model.eval()

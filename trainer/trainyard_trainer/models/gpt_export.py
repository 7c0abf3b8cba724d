"""A GPT as Hugging Face's GPT2LMHeadModel reads it: config.json, weights, generation defaults."""

from pathlib import Path

from torch import Tensor

from trainyard_storage.files import write_json
from trainyard_trainer.models.gpt import GPTShape

# transformers keeps these as Conv1D: the same matrix, transposed.
_CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_gpt2(
    weights: dict[str, Tensor], shape: GPTShape, directory: Path, eos_id: int | None = None
) -> None:
    """Write model.safetensors, config.json and generation_config.json into `directory`.

    `eos_id`: the token between texts, which both begins and ends one.
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

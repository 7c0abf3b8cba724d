"""A model as char-gpt exports it: the trainer's own code, weights of all kinds, a golden text."""

from pathlib import Path

import torch

from trainyard_trainer.data.tokenizers import CharTokenizer
from trainyard_trainer.models.gpt import GPT, GPTShape, write_gpt2
from trainyard_trainer.recipes.golden import write_golden_text

TEXT = "to be, or not to be: that is the question"


def export_trained_gpt(directory: Path, seed: int, n_layer: int = 2) -> None:
    """Untrained, but with distinct logits."""
    torch.manual_seed(seed)
    tokenizer = CharTokenizer.of(TEXT)
    shape = GPTShape(tokenizer.vocab_size, block_size=32, n_layer=n_layer, n_head=2, n_embd=16)
    model = GPT(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.4)
    write_gpt2(model.state_dict(), shape, directory)
    tokenizer.save(directory, 32)
    prompt = TEXT[:12]
    write_golden_text(directory, prompt, tokenizer.encode(prompt).tolist(), 32, model.train(False))

"""A tiny chat model: characters, ChatML's special tokens, and a template that uses them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tests.support.serving.models import ALPHABET

CHAT_CONTEXT = 128
TEMPLATE = (
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('the user speaks first') }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content +"
    " '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def chatml(*turns: tuple[str, str]) -> str:
    """What the template writes, by hand."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in turns)
    return text + "<|im_start|>assistant\n"


def export_chat_gpt(directory: Path, seed: int = 7, template: str | None = TEMPLATE) -> None:
    """An untrained character GPT whose tokenizer knows turns."""
    vocabulary = {c: i for i, c in enumerate(["<unk>", *ALPHABET])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(t) for t in ("<|im_start|>", "<|im_end|>")])
    fast: Any = PreTrainedTokenizerFast
    saved = fast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        model_max_length=CHAT_CONTEXT,
        chat_template=template,
    )
    saved.save_pretrained(directory)
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(saved),
        n_positions=CHAT_CONTEXT,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,  # the template alone says what ends a turn
        initializer_range=0.1,  # logits are close, so that it ends a turn now and then
    )
    GPT2LMHeadModel(config).save_pretrained(directory)

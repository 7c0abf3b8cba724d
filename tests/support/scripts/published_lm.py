"""Trains a language model of a user's own from nothing, and publishes it."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import trainyard

STEPS = 20
END = "<|endoftext|>"

run = trainyard.init()
texts = [f"The sum of {a} and {b} is {a + b}." for a in range(20) for b in range(20)]
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
bpe.decoder = decoders.ByteLevel()
bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=[END]))
tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
    tokenizer_object=bpe, eos_token=END, pad_token=END, model_max_length=64
)
shape: dict[str, Any] = {"n_layer": 1, "n_head": 2, "n_embd": 32, "n_positions": 64}
model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), eos_token_id=0, **shape))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
ids = torch.tensor([tokenizer("The sum of 2 and 3 is 5.")["input_ids"]])
for step in range(1, STEPS + 1):
    loss = model(input_ids=ids, labels=ids).loss
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad()
    run.report(step=step, total=STEPS, loss=loss)
model.save_pretrained("/tmp/model")
tokenizer.save_pretrained("/tmp/model")
run.publish("/tmp/model", metrics={"loss": loss}, golden="The sum of")

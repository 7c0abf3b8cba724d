"""Supervised fine-tuning as a user of TRL writes it: it knows nothing of Trainyard."""

import os
import sys

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

STEPS, EVAL_STEPS = int(sys.argv[1]), int(sys.argv[2])

texts = [f"The sum of {a} and {b} is {a + b}." for a in range(20) for b in range(20)]
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
special = ["<|endoftext|>"]
bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=special))
tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
    tokenizer_object=bpe, eos_token=special[0], pad_token=special[0]
)
config = GPT2Config(
    n_layer=1, n_head=2, n_embd=32, vocab_size=len(tokenizer), n_positions=64, eos_token_id=0
)
arguments = SFTConfig(
    "/tmp/sft-output",
    max_steps=STEPS,
    per_device_train_batch_size=4,
    max_length=32,
    logging_steps=10,
    eval_strategy="steps",
    eval_steps=EVAL_STEPS,
    save_strategy="no",
    report_to="none",
    bf16=False,
    use_cpu=True,
    disable_tqdm=True,
)
SFTTrainer(
    GPT2LMHeadModel(config),
    args=arguments,
    train_dataset=Dataset.from_dict({"text": texts}),
    eval_dataset=Dataset.from_dict({"text": texts[::10]}),
    processing_class=tokenizer,
).train()
torch.distributed.destroy_process_group()
os._exit(0)  # at once: PyTorch 2.15 may abort while Python takes its threads down

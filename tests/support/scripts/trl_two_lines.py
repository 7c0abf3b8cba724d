"""Supervised fine-tuning with TRL and TrainyardCallback; the model is published at the end.

It trains until it is stopped, and 20 steps more in the next attempt.
"""

import torch
from datasets import Dataset  # type: ignore[import-untyped]
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from trainyard.transformers import TrainyardCallback

callback = TrainyardCallback()
out = callback.run.directory / "out"
path = get_last_checkpoint(str(out)) if out.exists() else None  # type: ignore[no-untyped-call]
steps = int(path.rpartition("-")[2]) + 20 if path else 1_000_000

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
    str(out),
    max_steps=steps,
    per_device_train_batch_size=4,
    max_length=32,
    logging_steps=10,
    save_strategy="no",
    report_to="none",
    bf16=False,
    use_cpu=True,
    disable_tqdm=True,
)
trainer = SFTTrainer(
    GPT2LMHeadModel(config),
    args=arguments,
    train_dataset=Dataset.from_dict({"text": texts}),
    processing_class=tokenizer,
    callbacks=[callback],
)
trainer.train(resume_from_checkpoint=path)
if not callback.run.should_stop():
    trainer.save_model(str(out / "model"))
    callback.run.publish(out / "model", golden="The sum of")
torch.distributed.destroy_process_group()

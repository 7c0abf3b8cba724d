"""A small byte-level BPE tokenizer in Hugging Face form."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<|endoftext|>"


def bpe_folder(text: str, directory: Path) -> Path:
    """Train one of 400 tokens on `text` and write it to `directory`."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text], trainer)
    made.save(str(directory / "tokenizer.json"))
    config = {"eos_token": EOS, "model_max_length": 1024}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory

"""A prompt's completion by a loaded model, with nobody beside it."""

from typing import Any

from trainyard_serving.generate.completion import Chunk, Sampling
from trainyard_serving.generate.language_model import LanguageModel


def write(model: LanguageModel, prompt: list[int], **sampling: Any) -> list[Chunk]:
    """The chunks of one text, as `Sampling(**sampling)` asks for it."""
    batch = model.batch(1)
    batch.add(model.begin(0, prompt, Sampling(**sampling)))
    chunks = []
    while batch.sequences:
        for _, said in [*batch.read(), *batch.write()]:
            if isinstance(said, Exception):
                raise said
            chunks.append(said)
    return chunks


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)

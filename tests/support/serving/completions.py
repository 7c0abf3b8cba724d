"""A prompt's completion by a loaded model, alone in its batch."""

from typing import Any

from trainyard_serving.generate.engine import Chunk, SamplingOptions
from trainyard_serving.generate.language_model import LanguageModel


def write(model: LanguageModel, prompt: list[int], **sampling: Any) -> list[Chunk]:
    """The chunks of one text, as `SamplingOptions(**sampling)` asks for it."""
    batch = model.new_batch(1)
    batch.add(model.new_sequence(0, prompt, SamplingOptions(**sampling)))
    chunks = []
    while batch.sequences:
        for _, result in [*batch.prefill(), *batch.decode()]:
            if isinstance(result, Exception):
                raise result
            chunks.append(result)
    return chunks


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)

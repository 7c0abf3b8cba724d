"""The worker: batches, order, bounds, cancellation, swaps, and failures."""

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM

from tests.support.serving.completions import text_of, write
from tests.support.serving.models import ALPHABET, CONTEXT, export_char_gpt
from trainyard_serving.errors import QueueFullError
from trainyard_serving.generate.engine import Chunk, GrammarError, SamplingOptions
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.generate.token_model import PaddedCache
from trainyard_serving.generate.worker import Job, JobFailedError, Worker
from trainyard_serving.metrics import Metrics
from trainyard_serving.model_store.verified import describe_plain

ENDLESS = SamplingOptions(max_tokens=10**9, seed=1)
TO_BE, OR_NOT = "To be, or not", "to be"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("gpt2")
    export_char_gpt(directory)
    return directory


@pytest.fixture(scope="module")
def model(directory: Path) -> LanguageModel:
    return LanguageModel.load(describe_plain(directory), "cpu")


@asynccontextmanager
async def working(max_queue: int = 8, max_batch_size: int = 4) -> AsyncIterator[Worker]:
    worker = Worker(max_queue, max_batch_size, Metrics())
    worker.start()
    try:
        yield worker
    finally:
        await asyncio.to_thread(worker.stop)
        assert not worker.alive


def submit(worker: Worker, model: LanguageModel, *prompts: str, **sampling: Any) -> Job:
    return worker.submit(
        model, [model.encode(prompt) for prompt in prompts], SamplingOptions(**sampling)
    )


async def chunks_of(job: Job) -> list[Chunk]:
    return [chunk async for chunk in job.chunks()]


async def text(job: Job) -> str:
    return text_of(await chunks_of(job))


def alone(model: LanguageModel, prompt: str, **sampling: Any) -> str:
    return text_of(write(model, model.encode(prompt), **sampling))


def largest_batch(worker: Worker) -> int:
    """The bucket of the largest number of texts that were computed together."""
    (metric,) = worker._metrics.batch_size.collect()
    counts = {s.labels["le"]: s.value for s in metric.samples if s.name.endswith("_bucket")}
    return int(float(next(le for le, count in counts.items() if count == counts["+Inf"])))


async def begun(job: Job) -> None:
    """Wait until the text is being written."""
    await anext(job.chunks())


async def test_texts_join_and_leave_the_batch_unchanged(
    model: LanguageModel,
) -> None:
    options: list[dict[str, Any]] = [
        {"max_tokens": CONTEXT, "seed": 5},
        {"max_tokens": 5, "temperature": 0},
        {"max_tokens": 40, "seed": 6, "top_p": 0.8},
    ]
    async with working() as worker:
        endless = worker.submit(model, [model.encode("a")], ENDLESS)
        await begun(endless)  # and continues beside all the others
        jobs = [submit(worker, model, TO_BE, **sampling) for sampling in options]
        texts = await asyncio.gather(*map(text, jobs))
        endless.cancel()
        assert largest_batch(worker) == 4
    assert texts == [alone(model, TO_BE, **sampling) for sampling in options]


async def test_the_prompts_of_a_request_are_generated_together(model: LanguageModel) -> None:
    prompts = [TO_BE, OR_NOT, "a", "b", "c", "d"]  # more than fit into a batch
    async with working(max_queue=1) as worker:
        chunks = await chunks_of(submit(worker, model, *prompts, max_tokens=9, seed=2))
        assert largest_batch(worker) == 4
        assert worker.depth == 0
    for index, prompt in enumerate(prompts):
        own = [chunk for chunk in chunks if chunk.index == index]
        assert text_of(own) == alone(model, prompt, max_tokens=9, seed=2)
        assert [chunk.finish_reason for chunk in own][-1] == "length"


async def test_a_short_text_ends_before_an_earlier_long_one(model: LanguageModel) -> None:
    async with working() as worker:
        long = worker.submit(model, [model.encode("a")], ENDLESS)
        await begun(long)
        assert len(await text(submit(worker, model, "b", max_tokens=3, seed=1))) == 3
        await begun(long)  # still being written


async def test_the_queue_is_bounded_and_a_cancelled_job_leaves_it(
    model: LanguageModel,
) -> None:
    async with working(max_queue=2, max_batch_size=1) as worker:
        running = worker.submit(model, [model.encode("a")], ENDLESS)
        await begun(running)
        never = worker.submit(model, [model.encode("a")], ENDLESS)
        last = submit(worker, model, "b", max_tokens=2, seed=3)
        assert worker.depth == 2
        with pytest.raises(QueueFullError) as refused:
            submit(worker, model, "c")
        assert (refused.value.retry_after or 0) >= 1
        never.cancel()
        assert worker.depth == 1
        running.cancel()
        assert await text(last) == alone(model, "b", max_tokens=2, seed=3)


async def test_cancelling_texts_does_not_change_the_others(model: LanguageModel) -> None:
    async with working() as worker:
        leaving = [worker.submit(model, [model.encode(p)], ENDLESS) for p in ("a", TO_BE)]
        for job in leaving:
            await begun(job)
        staying = submit(worker, model, OR_NOT, max_tokens=30, seed=4)
        results = staying.chunks()
        chunks = [await anext(results)]
        for job in leaving:
            job.cancel()
            chunks.append(await anext(results))
        chunks += [chunk async for chunk in results]
    assert text_of(chunks) == alone(model, OR_NOT, max_tokens=30, seed=4)


async def test_a_request_that_fails_fails_alone(model: LanguageModel) -> None:
    async with working() as worker:
        good = submit(worker, model, TO_BE, max_tokens=30, seed=4)
        failing = worker.submit(model, [model.encode("a"), [10**6]], ENDLESS)  # no such token
        with pytest.raises(JobFailedError):
            await text(failing)
        assert await text(good) == alone(model, TO_BE, max_tokens=30, seed=4)


class DeadEnd:
    """A grammar that nothing can follow after two tokens."""

    def __init__(self) -> None:
        self.left = 2

    def copy(self) -> "DeadEnd":
        return DeadEnd()

    def mask(self, logits: Tensor) -> None:
        if not self.left:
            raise GrammarError("nothing can follow")

    def accept(self, token: int) -> bool:
        self.left -= 1
        return False


async def test_a_grammar_without_a_continuation_is_the_requests_fault(
    model: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    async with working() as worker:
        other = submit(worker, model, TO_BE, max_tokens=8, temperature=0)
        job = submit(worker, model, OR_NOT, max_tokens=8, grammar=DeadEnd())
        with pytest.raises(JobFailedError, match="response_format: nothing can follow") as failed:
            await chunks_of(job)
        assert (failed.value.status_code, failed.value.param) == (400, "response_format")
        assert text_of(await chunks_of(other)) == alone(model, TO_BE, max_tokens=8, temperature=0)
    assert "failed inside the model" not in caplog.text


async def test_a_failure_of_the_whole_batch_ends_it_and_the_next_works(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add_row(*args: object) -> None:
        raise MemoryError("boom")

    async with working() as worker:
        jobs = [worker.submit(model, [model.encode(p)], ENDLESS) for p in ("a", "b")]
        with monkeypatch.context() as patch:
            patch.setattr(PaddedCache, "add_row", add_row)
            for job in jobs:
                with pytest.raises(JobFailedError):
                    await text(job)
        assert len(await text(submit(worker, model, "b", max_tokens=3, seed=1))) == 3


async def test_models_never_mix_and_the_old_one_is_freed_after_its_texts(
    model: LanguageModel, directory: Path
) -> None:
    old = LanguageModel.load(describe_plain(directory), "cpu")
    for weight in old.tokens.module.parameters():
        weight.mul_(0.5)
    written = [alone(m, TO_BE, max_tokens=9, temperature=0) for m in (old, model)]
    assert written[0] != written[1]
    async with working(max_batch_size=8) as worker:
        jobs = [
            submit(worker, m, TO_BE, max_tokens=9, temperature=0)
            for m in (old, model, old, model, old, model)
        ]
        assert await asyncio.gather(*map(text, jobs)) == written * 3
        assert largest_batch(worker) == 4  # the bucket of three: as many of each
        gone = weakref.ref(old)
        del old, jobs
        await text(submit(worker, model, "a", max_tokens=1))
        assert gone() is None


def export_mistral(gpt2: Path, mistral: Path) -> None:
    """A model whose layers look back by 8 tokens only, and the tokenizer of another."""
    for file in gpt2.glob("tokenizer*"):
        (mistral / file.name).write_bytes(file.read_bytes())
    config = MistralConfig(
        vocab_size=len(ALPHABET) + 1,
        max_position_embeddings=CONTEXT,
        sliding_window=8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
    )
    MistralForCausalLM(config).save_pretrained(mistral)


async def test_a_model_that_cannot_be_batched_generates_one_text_at_a_time(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    export_mistral(directory, tmp_path)
    mistral = LanguageModel.load(describe_plain(tmp_path), "cpu")
    with caplog.at_level(logging.WARNING):
        mistral.check()
        async with working() as worker:
            prompts = [TO_BE, OR_NOT, "a"]
            jobs = [submit(worker, mistral, p, max_tokens=12, seed=7) for p in prompts]
            texts = await asyncio.gather(*map(text, jobs))
            assert largest_batch(worker) == 1
    assert texts == [alone(mistral, p, max_tokens=12, seed=7) for p in prompts]
    (line,) = [r.getMessage() for r in caplog.records if "one at a time" in r.getMessage()]
    assert "DynamicSlidingWindowLayer" in line


async def test_stopping_fails_running_and_waiting_jobs(model: LanguageModel) -> None:
    async with working(max_batch_size=1) as worker:
        jobs = [worker.submit(model, [model.encode("a")], ENDLESS) for _ in range(2)]
        await begun(jobs[0])
    for job in jobs:
        with pytest.raises(JobFailedError, match="stopping"):
            await text(job)

"""Recipe gpt: tokens from every kind of corpus, exact runs, and a model that transformers reads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.trainer.bpe import EOS, bpe_folder
from tests.support.trainer.bucket import NAME, bucket
from trainyard_api.job import EXIT_CONFIG, RUN_DIR_ENV, TrainerJob
from trainyard_storage.checkpoints import file_sha256
from trainyard_trainer.config import parse_config
from trainyard_trainer.data.sampling import global_batch
from trainyard_trainer.data.tokenizers import BPETokenizer, split_text
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.gpt import BPEGPT, BPEGPTConfig

MakeJob = Callable[..., TrainerJob]
GPT2 = Path(__file__).parents[4] / "shared/data/tokenizers/gpt2"


@pytest.fixture(scope="module")
def tokenizer(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bpe_folder(corpus.read_text(), tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def gpt_job(make_job: MakeJob, tokenizer: Path) -> MakeJob:
    """As make_job, for recipe gpt."""

    def make(job: dict[str, Any] | None = None, **config: Any) -> TrainerJob:
        return make_job({"recipe": "gpt", **(job or {})}, tokenizer=str(tokenizer), **config)

    return make


@pytest.fixture
def go(train: Any, tmp_path: Path) -> Any:
    """As `train`, with a cache of its own."""
    return lambda job, ranks=1: train(job, ranks, env={RUN_DIR_ENV: str(tmp_path / "run")})


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "run"))


@pytest.fixture
def recipe(corpus: Path, tokenizer: Path) -> Callable[..., BPEGPT]:
    """The recipe alone, in this process."""

    def make(saved: dict[str, Any] | None = None, **config: Any) -> BPEGPT:
        settings = {"corpus": str(corpus), "tokenizer": str(tokenizer), "block_size": 16}
        return BPEGPT(parse_config(BPEGPTConfig, settings | config), saved)

    return make


def losses_and_weights(run: Any, step: int = 12) -> tuple[dict[int, float], str]:
    weights = run.run_dir / f"models/step-{step:08d}/model.safetensors"
    return run.losses(), file_sha256(weights)


# --- whole runs ---


def test_two_ranks_make_a_model_that_transformers_reads(
    gpt_job: MakeJob, go: Any, corpus: Path, tokenizer: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    run = go(gpt_job(prompt="def "), ranks=2)
    assert run.losses()[12] < run.losses()[1] - 0.5
    assert run.result["sample"].startswith("def ")

    directory = run.run_dir / "models/step-00000012"
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    assert model.config.vocab_size == 400  # of the 448 there were in training
    assert model.config.eos_token_id == 0
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    text = corpus.read_text()[:300]
    ids = theirs(text)["input_ids"]
    assert ids == BPETokenizer(str(tokenizer)).encode(text)
    assert theirs.decode(ids) == text
    assert theirs.model_max_length == 16
    assert theirs.eos_token == EOS

    evaluated = [line["eval_loss"] for line in run.history() if "eval_loss" in line]
    ours = BPEGPT(BPEGPTConfig(**run.job.config), None)
    chosen = np.linspace(0, len(ours.held_out) - 1, 16).astype(np.int64)  # eval_batches: 2
    batch = ours.held_out.fetch(chosen, np.zeros(0, np.uint64))
    with torch.no_grad():
        logits = model(batch["ids"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    # What was evaluated had the padded rows too.
    assert float(loss) == pytest.approx(evaluated[-1], abs=0.05)
    assert float(loss) <= evaluated[-1]


def test_a_killed_run_resumes_bitwise(
    gpt_job: MakeJob, go: Any, launch: Any, tmp_path: Path
) -> None:
    settings = {"max_steps": 40, "eval_steps": 0, "dataloader_num_workers": 1}
    whole = go(gpt_job({"run_dir": str(tmp_path / "whole")}, **settings), ranks=2)
    killed = launch(gpt_job(**settings), 2, env={RUN_DIR_ENV: str(tmp_path / "run")})
    killed.wait_for_step(9)
    killed.kill()
    resumed = go(gpt_job({"attempt": 2}, **settings), ranks=2)
    assert resumed.result["resumedFromStep"] >= 4
    assert losses_and_weights(resumed, 40) == losses_and_weights(whole, 40)


def test_recomputing_activations_changes_nothing(gpt_job: MakeJob, go: Any, tmp_path: Path) -> None:
    keeps, recomputes = (
        go(gpt_job({"run_dir": str(tmp_path / str(on))}, activation_checkpointing=on))
        for on in (False, True)
    )
    assert losses_and_weights(keeps) == losses_and_weights(recomputes)


def test_fsdp_computes_what_ddp_does(gpt_job: MakeJob, go: Any, tmp_path: Path) -> None:
    ddp, fsdp = (
        go(gpt_job({"strategy": name, "run_dir": str(tmp_path / name)}), ranks=2)
        for name in ("ddp", "fsdp")
    )
    assert fsdp.losses() == pytest.approx(ddp.losses(), abs=2e-4)


@pytest.mark.skipif(not GPT2.exists(), reason="needs the GPT-2 tokenizer of ../shared/data")
def test_the_real_gpt2_tokenizer(gpt_job: MakeJob, go: Any, make_job: MakeJob) -> None:
    job = make_job({"recipe": "gpt"}, tokenizer=str(GPT2), max_steps=8, eval_steps=0, n_embd=16)
    run = go(job)
    assert "(vocabulary 50,257)" in run.out
    assert run.losses()[8] < run.losses()[1] - 0.3
    transformers = pytest.importorskip("transformers")
    directory = run.run_dir / "models/step-00000008"
    assert transformers.AutoModelForCausalLM.from_pretrained(directory).config.vocab_size == 50257
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert theirs("Hello world")["input_ids"] == [15496, 995]


# --- corpora ---


def test_every_kind_of_corpus_gives_the_same_tokens(
    recipe: Callable[..., BPEGPT], corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    text = recipe()
    tokens = np.asarray(BPETokenizer(str(tokenizer)).encode(corpus.read_text()))
    np.save(tmp_path / "tokens.npy", tokens)
    tokens.astype("<u2").tofile(tmp_path / "tokens.bin")
    for name in ("tokens.npy", "tokens.bin"):
        other = recipe(corpus=str(tmp_path / name))
        assert other.state() == text.state()
        ids = np.arange(len(text.train))
        assert all(
            torch.equal(value, other.train.fetch(ids, ids.astype(np.uint64))[key])
            for key, value in text.train.fetch(ids, ids.astype(np.uint64)).items()
        )
        # A checkpoint of one can be resumed with the other.
        recipe(saved=text.state(), corpus=str(tmp_path / name))


def test_rows_are_documents(
    recipe: Callable[..., BPEGPT],
    tokenizer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [f"text number {i} of some\nlines" for i in range(200)]
    lines = [json.dumps({"abstract": text, "id": 1}) for text in texts]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    made = recipe(corpus=str(tmp_path / "rows.jsonl"), text_column="abstract")
    bpe = BPETokenizer(str(tokenizer))
    expected = [i for text in texts for i in (*bpe.encode(text), bpe.eos_id)]
    assert made.num_tokens == len(expected)
    assert made.train.tokens.read(0, len(expected)).tolist() == expected
    with pytest.raises(ConfigError, match=r"config.text_column: id of .* holds int64, not text"):
        recipe(corpus=str(tmp_path / "rows.jsonl"), text_column="id")
    with bucket() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for shard in (0, 1):
            content = "\n".join(lines[100 * shard :][:100])
            server.put(f"texts/train-0000{shard}-of-00002.jsonl", content.encode())
        remote = recipe(corpus=f"s3://{NAME}/texts", text_column="abstract", saved=made.state())
    assert remote.state() == made.state()
    assert "; read 200 rows of 2 files, " in remote.describe()


def test_each_token_is_a_target_once_an_epoch(recipe: Callable[..., BPEGPT]) -> None:
    made = recipe()
    border = made.num_tokens - int(made.num_tokens * made.config.eval_fraction)
    for samples in (made.train, made.held_out):
        ids = global_batch(1, 0, len(samples), len(samples))
        targets = samples.fetch(np.sort(ids), ids.astype(np.uint64))["targets"].flatten()
        start, end = (0, border) if samples is made.train else (border, made.num_tokens)
        expected = samples.tokens.read(start + 1, start + 1 + len(targets))
        assert targets.tolist() == expected.tolist()
        assert end - start - 1 - len(targets) < 16


def test_split_text_has_the_tokens_of_the_whole(tokenizer: Path, corpus: Path) -> None:
    bpe = BPETokenizer(str(tokenizer))
    text = corpus.read_text() + "a\n\n\nb \n c\n\td.\nE\r\nf\n" + "no end" * 20
    cut = list(split_text([text], 40))
    assert "".join(cut) == text
    assert len(cut) > 10
    for size in (1, 7, 39, 41):  # the same pieces, wherever a chunk ends
        chunks = [text[start : start + size] for start in range(0, len(text), size)]
        assert list(split_text(chunks, 40)) == cut
    assert bpe.encode_all(cut, None).tolist() == bpe.encode(text)


# --- mistakes ---


def test_what_a_checkpoint_was_trained_with_must_stay(
    recipe: Callable[..., BPEGPT], corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    saved = recipe().state()
    moved = tmp_path / "moved"
    shutil.copytree(tokenizer, moved)
    recipe(saved=saved, tokenizer=str(moved)).check_data(saved)  # only the place is another

    definition = json.loads((moved / "tokenizer.json").read_text())
    definition["model"]["merges"].pop()
    (moved / "tokenizer.json").write_text(json.dumps(definition))
    with pytest.raises(ConfigError, match=r"config.tokenizer: .* is not the tokenizer"):
        recipe(saved=saved, tokenizer=str(moved))

    (tmp_path / "other.txt").write_text(corpus.read_text() + "x")
    other = recipe(saved=saved, corpus=str(tmp_path / "other.txt"))  # as a branch may have
    with pytest.raises(ConfigError, match=r"config.corpus: .* does not hold the tokens"):
        other.check_data(saved)


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.txt", b"", "is empty"),
        ("short.txt", b"too short", "tokens, too few for block_size 16: give at least 341"),
        ("empty.bin", b"", "is not a token file"),
        ("odd.bin", b"123", "is not a token file"),
        ("text.npy", b"once upon a time", "is not a token file"),
        ("large.bin", b"\xff\xff" * 999, "400 tokens, but .* has ids from 65535 to 65535"),
    ],
)
def test_an_invalid_corpus(
    recipe: Callable[..., BPEGPT], tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        recipe(corpus=_write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_arrays_that_are_not_tokens(recipe: Callable[..., BPEGPT], tmp_path: Path) -> None:
    path = tmp_path / "tokens.npy"
    for array in (np.zeros((9, 9), np.int64), np.zeros(999)):
        np.save(path, array)
        with pytest.raises(ConfigError, match="must be a 1-d array of integers"):
            recipe(corpus=str(path))
    np.save(path, np.full(999, -1))
    with pytest.raises(ConfigError, match="has ids from -1 to -1"):
        recipe(corpus=str(path))
    with pytest.raises(ConfigError, match="does not exist here"):
        recipe(corpus=str(tmp_path / "none.bin"))


def test_an_invalid_tokenizer(recipe: Callable[..., BPEGPT], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no tokenizer.json"):
        recipe(tokenizer=str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"tokenizer.json is not a tokenizer"):
        recipe(tokenizer=str(tmp_path))
    with pytest.raises(ConfigError, match="is not a directory"):
        recipe(tokenizer="./nowhere")


def test_compiling_without_a_compiler(gpt_job: MakeJob, launch: Any, tmp_path: Path) -> None:
    run = launch(gpt_job(compile=True), env={"PATH": str(tmp_path), "CXX": ""})
    assert run.wait() == [EXIT_CONFIG]
    said = "ConfigError: config.compile: torch.compile needs g++ or clang++, which is not installed"
    assert run.err.startswith(said)
    assert len(run.err.splitlines()) == 1

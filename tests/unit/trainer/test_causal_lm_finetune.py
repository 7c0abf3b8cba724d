"""causal-lm-finetune without a run: which tokens have a loss, and errors of one line."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file

from tests.support.trainer.bucket import NAME, bucket
from tests.support.trainer.ranks import ROOT
from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.config import parse_config
from trainyard_trainer.data.sequences import Part
from trainyard_trainer.data.texts import IGNORED, TokenSamples, encode
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.causal_lm_finetune import CausalLMFinetune, short_name
from trainyard_trainer.recipes.hugging_face import blocks_of, empty_model, load_tokenizer

DATA = ROOT.parent / "shared" / "data"
STORIES = DATA / "models/stories260K"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}: the real models and texts")

NOISE = np.zeros(0, dtype=np.uint64)
TEXTS = ["Once upon a time", "", "there was", None, "a little girl who", "lived in a", "house"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    table = pa.table({"title": ["a", "b", "c", "d", "e", "f", "g"], "text": TEXTS, "n": range(7)})
    path: Path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    parquet.write_table(table, path)
    return path


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/one"))


def recipe(rows: Path, saved: dict[str, Any] | None = None, **config: Any) -> CausalLMFinetune:
    settings = {"model": str(STORIES), "dataset": str(rows), "text_column": "text"}
    settings |= {"eval_samples": 2, "max_length": 32} | config
    return CausalLMFinetune(parse_config(CausalLMFinetune.Config, settings), saved)


def test_texts_end_with_eos_unless_truncated() -> None:
    tokenizer = load_tokenizer("tokenizer", str(STORIES))
    (whole, given), (cut, _) = encode(tokenizer, ["One day", "One day " * 9], None, 12)
    assert (whole[0], whole[-1], given) == (1, 2, 0)  # <s> ... </s>
    assert len(cut) == 12
    assert cut[-1] != 2


def test_prompts_have_no_loss() -> None:
    tokenizer = load_tokenizer("tokenizer", str(DATA / "tokenizers/qwen2"))
    [(tokens, given)] = encode(tokenizer, ["An answer."], ["A question?"], 64)
    chat = [
        {"role": "user", "content": "A question?"},
        {"role": "assistant", "content": "An answer."},
    ]
    expected = str(tokenizer.apply_chat_template(chat, tokenize=False))
    assert tokenizer.decode(tokens.tolist()) == expected.rstrip("\n")
    batch = TokenSamples([Part.of([(0, given, tokens)])]).fetch(np.array([0]), NOISE)
    learnt = batch["targets"][batch["targets"] != IGNORED]
    assert tokenizer.decode(learnt.tolist()) == "An answer.<|im_end|>"


def test_padding_does_not_change_the_loss(rows: Path) -> None:
    short = recipe(rows)
    long = recipe(rows, compile=True)  # pads to max_length
    model = short.build().eval()
    ids = np.arange(len(short.train))
    with torch.no_grad():
        alone = [short.loss(model, short.train.fetch(ids[i : i + 1], NOISE)) for i in ids]
        batches = [each.train.fetch(ids, NOISE) for each in (short, long)]
        together = [float(short.loss(model, batch)) for batch in batches]
    assert [batch["ids"].shape[1] for batch in batches] == [max(short.weights(ids)), 31]
    mean = float(np.average([float(loss) for loss in alone], weights=short.weights(ids)))
    assert together == pytest.approx([mean, mean], abs=1e-5)
    assert short.summarise(short.evaluate(model, batches[0]).tolist())["eval_loss"] == (
        pytest.approx(mean, abs=1e-5)
    )


def test_rows_without_a_text_are_skipped_and_counted(rows: Path) -> None:
    found = recipe(rows, slice={"start": 0, "end": 5})
    assert len(found.train) == 3
    assert found.describe().endswith(
        "2 texts held out; 2 skipped (no text, or no room after the prompt); read 7 rows of 1 file"
    )
    with pytest.raises(ConfigError, match="every text in the slice is empty"):
        recipe(rows, slice={"start": 1, "end": 2})


def test_a_bucket_gives_the_same_samples(rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = recipe(rows, prompt="{title}:")
    with bucket() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.upload(rows.parent, "texts")
        there = recipe(
            rows, here.state(), dataset=f"s3://{NAME}/texts/rows.parquet", prompt="{title}:"
        )
    there.check_data(here.state())
    assert there.state() == here.state()


def test_texts_are_tokenised_once(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "rows.parquet"
    shutil.copy(rows, own)
    first, ids = recipe(own), np.arange(3)
    encoded: list[int] = []

    def count(tokenizer: Any, texts: list[str], *settings: Any) -> Any:
        encoded.append(len(texts))
        return encode(tokenizer, texts, *settings)

    monkeypatch.setattr("trainyard_trainer.recipes.causal_lm_finetune.encode", count)
    again, part = recipe(own), recipe(own, slice={"start": 2, "end": 5})
    assert encoded == [], "other rows of the same data are there, too"
    assert again.state() == first.state() != part.state()
    assert len(part.train) == 2
    batches = [each.train.fetch(ids, NOISE) for each in (first, again)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    recipe(own, max_length=31)
    table = parquet.read_table(own)
    parquet.write_table(table.slice(0, 6), own)
    assert recipe(own).state() != first.state()
    assert encoded == [5, 4]


def test_other_texts_are_not_the_checkpoints(rows: Path) -> None:
    saved = recipe(rows).state()
    recipe(rows, saved).check_data(saved)
    other = recipe(rows, saved, prompt="Go on: {title}")
    with pytest.raises(ConfigError, match="not those the checkpoint was trained on"):
        other.check_data(saved)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"slice": {"start": 0, "end": 7}},
            "has 7 and the last 2 held out (eval_samples): end can",
        ),
        ({"slice": {"start": 5, "end": 5}}, "config.slice: start (5) must be less than end (5)"),
        ({"slice": {"start": 0, "ends": 5}}, "config.slice.ends: unknown key; did you mean end?"),
        ({"eval_samples": 7}, "config.eval_samples: 7 rows are held out, but"),
        ({"text_column": "abstract"}, "has no column abstract; it has title, text, n"),
        ({"text_column": "n"}, "config.text_column: n holds int64, not text"),
        ({"prompt": "{titel}"}, "has no column titel"),
        ({"prompt": "{}"}, "config.prompt: write columns in braces, {title}"),
        (
            {"prompt": "x" * 99 + "{title}"},
            "config.max_length: 32 tokens leave no room",
        ),
        ({"max_length": 513}, "config.max_length: 513 tokens, but"),
        ({"model": "./none"}, "config.model: ./none is not a directory"),
        ({"model": "nobody/none"}, "nobody/none could not be loaded from the Hub (and is no"),
        ({"tokenizer": str(DATA / "tokenizers/qwen2")}, "has 151,646 tokens, but the model"),
        ({"tokenizer": str(DATA / "configs/Qwen2-0.5B-Instruct")}, "has no tokenizer"),
        ({"lora": {"target_modules": ["c_attn"]}}, "there is no c_attn; LlamaForCausalLM has down"),
        ({"lora": {"alpa": 8}}, "config.lora.alpa: unknown key; did you mean alpha?"),
    ],
)
def test_mistakes_are_one_line(
    rows: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        recipe(rows, **config).build()
    assert "\n" not in str(caught.value)


def test_remote_code_is_never_run(rows: Path, tmp_path: Path) -> None:
    shutil.copytree(STORIES, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "config.json").read_text())
    own = {
        "model_type": "own",
        "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(settings | own))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Own: pass\n")
    with pytest.raises(ConfigError, match="needs remote code, which is never run"):
        recipe(rows, model=str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_weights_must_be_there_complete_and_not_pickled(rows: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    shutil.copytree(STORIES, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"has no weights \(model.safetensors\)"):
        recipe(rows, model=str(tmp_path)).build()
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"lack model.norm.weight: it is not a pretrained Llama"):
        recipe(rows, model=str(tmp_path)).build()
    recipe(rows, model=str(tmp_path), from_scratch=True).build()


def test_the_layers_of_any_model_are_found() -> None:
    from transformers import AutoModelForCausalLM, GPT2Config, MixtralConfig

    small: dict[str, Any] = {"num_hidden_layers": 3, "hidden_size": 32, "vocab_size": 99}
    small |= {"num_attention_heads": 2}
    for config in (GPT2Config(**small), MixtralConfig(**small, num_key_value_heads=1)):
        blocks = blocks_of(empty_model(config, AutoModelForCausalLM))
        assert [type(block).__name__.removesuffix("DecoderLayer") for block in blocks] in (
            ["GPT2Block"] * 3,
            ["Mixtral"] * 3,
        )


@pytest.mark.filterwarnings("error:.*tie_word_embeddings")
@pytest.mark.parametrize(
    ("modules", "tied"),
    [
        (["q_proj"], True),
        ("all-linear", True),
        (["embed_tokens", "q_proj"], False),
        (["lm_head"], False),
        (["embed_tokens", "lm_head"], False),
    ],
)
def test_an_adapter_of_tied_embeddings_is_merged_into_two_weights(
    rows: Path, tmp_path: Path, modules: list[str] | str, tied: bool
) -> None:
    found = recipe(rows, lora={"r": 4, "target_modules": modules})
    model = found.build().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:  # some are zero at first
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    batch = found.held_out.fetch(np.arange(2), NOISE)
    with torch.no_grad():
        trained = found.outputs(model, batch)
        found.export(model.state_dict(), tmp_path)
        assert torch.equal(found.outputs(model, batch), trained), "training goes on with these"
        exported = found.outputs(found.load_exported(tmp_path), batch)
    torch.testing.assert_close(exported, trained, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is tied
    adapter = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert adapter
    assert all("lora_" in name for name in adapter)


def test_samples_leave_the_global_generator_alone(rows: Path) -> None:
    found = recipe(rows, sample_tokens=6)
    model, before = found.build().eval(), torch.get_rng_state()
    with torch.no_grad():
        texts = [found.sample(model, step) for step in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("model", "short"),
    [
        ("Qwen/Qwen2-0.5B-Instruct", "qwen2_0.5B"),
        ("meta-llama/Llama-3.2-1B", "llama_3.2_1B"),
        ("/models/stories260K", "stories260k"),
    ],
)
def test_epoch_files_are_named_after_the_model(model: str, short: str) -> None:
    assert short_name(model) == short

"""run.publish: a Hugging Face folder of any script becomes a model that servers load over HTTP."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.sdk.scripts import agent_server, run_ranks, variables
from tests.support.serving.models import export_char_gpt
from tests.support.serving.news_model import LABELS, write_news_model
from tests.support.serving.servers import loaded
from tests.support.trainer.ranks import RankServer
from trainyard.golden import record
from trainyard_agent.server import ReportServer
from trainyard_api.checkpoint import MANIFEST, MODELS, step_name
from trainyard_api.golden import EVALUATION, GOLDEN, GoldenClasses, GoldenText, read_golden
from trainyard_cli.serve import CLASSIFY, GENERATE, app_of_model
from trainyard_serving.classify.classifier import Classifier
from trainyard_serving.errors import BadModelError
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.model_store.verified import describe_plain, verify_model
from trainyard_serving.settings import ClassifySettings
from trainyard_storage.checkpoints import digest, verify
from trainyard_trainer.errors import ConfigError


@pytest.fixture
def server() -> Iterator[ReportServer]:
    yield from agent_server()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What save_pretrained() leaves of a tiny GPT-2, with a Trainer's files beside it."""
    folder = tmp_path / "out"
    folder.mkdir()
    export_char_gpt(folder)
    (folder / "training_args.bin").write_bytes(b"pickled")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "optimizer.pt").write_bytes(b"pickled")
    return folder


def publish(
    server: RankServer, folder: Path, call: str, env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    script = folder.parent / "script.py"
    script.write_text(f"import trainyard\nrun = trainyard.init()\n{call}\n")
    run = {"TRAINYARD_RUN": "mine", "TRAINYARD_RUN_DIR": str(folder.parent), **(env or {})}
    (code,), out, errors = run_ranks(server, script, [], run)
    return code, out, errors


def test_a_published_folder_is_served_and_reported(
    rank_server: RankServer, server: ReportServer, folder: Path
) -> None:
    run_dir = folder.parent
    call = f"""
run.report(step=20, total=20)
print(run.publish({str(folder)!r}, metrics={{"eval_loss": 1.7, "bad": float("nan")}}))
"""
    code, out, errors = publish(rank_server, folder, call, variables(server, run_dir))
    assert (code, errors) == (0, "")
    model = run_dir / MODELS / step_name(20)
    assert out == f"{model}\n"
    manifest = verify(model)
    assert (manifest.kind, manifest.run, manifest.step) == ("model", "mine", 20)
    assert (manifest.recipe, manifest.metrics) == ("", {"eval_loss": 1.7})
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= manifest.files.keys()
    assert not [name for name in manifest.files if name.endswith((".bin", ".pt"))]
    document = server.report.document()
    assert document
    expected = {"step": 20, "digest": digest(model), "path": f"{MODELS}/{step_name(20)}"}
    assert document["model"] == document["bestModel"] == expected | {"evalLoss": 1.7}
    with loaded(run_dir=run_dir) as client:
        answer = client.post("/v1/completions", json={"prompt": "def ", "max_tokens": 3}).json()
    assert answer["usage"]["completion_tokens"] == 3


def test_answers_to_a_golden_request_are_recorded_and_checked_by_servers(
    rank_server: RankServer, folder: Path
) -> None:
    call = f"""
import torch
torch.manual_seed(1)
before = torch.get_rng_state()
run.publish({str(folder)!r}, step=20, golden="to be")
assert torch.equal(before, torch.get_rng_state())
"""
    code, _, errors = publish(rank_server, folder, call)
    assert code == 0, errors
    model = folder.parent / MODELS / step_name(20)
    golden = read_golden(model, GoldenText)
    assert golden
    assert (golden.prompt, len(golden.next_ids)) == ("to be", 4)
    assert GOLDEN in verify(model).files
    assert not (folder / GOLDEN).exists()
    LanguageModel.load(verify_model(model), "cpu").check()

    export_char_gpt(model, seed=8)
    with pytest.raises(BadModelError, match="logits differ from the trainer's"):
        LanguageModel.load(describe_plain(model), "cpu").check()


def test_a_classifier_s_golden_request_has_the_probabilities_of_its_classes(tmp_path: Path) -> None:
    write_news_model(tmp_path)
    for name in (GOLDEN, EVALUATION, MANIFEST):
        (tmp_path / name).unlink()
    record(tmp_path, ["word1 word2", "word3"])
    golden = read_golden(tmp_path, GoldenClasses)
    assert golden
    assert (golden.labels, len(golden.probabilities)) == (LABELS, 2)
    settings = ClassifySettings(model=str(tmp_path), threads=1)
    Classifier.load(describe_plain(tmp_path), settings).check()


def nan(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return weights | {"transformer.ln_f.weight": torch.full((32,), torch.nan)}


def wrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("change", "golden", "line"),
    [
        (nan, "to be", "the model computes NaN or infinity"),
        (wrapped, "to be", "are missing): save the module itself, not the one that wraps it"),
        (None, ["to be"], "for a language model it is one prompt, a str"),
        (None, "a" * 29, "the prompt has 29 tokens; use 1 to 28"),
        (None, "", "the prompt has 0 tokens"),
    ],
)
def test_a_model_that_cannot_answer_is_one_line(
    folder: Path, change: Any, golden: Any, line: str
) -> None:
    file = folder / "model.safetensors"
    if change:
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=re.escape(line)):
        record(folder, golden)
    assert not (folder / GOLDEN).exists()


def test_a_golden_request_of_a_model_that_answers_no_texts_is_one_line(
    rank_server: RankServer, folder: Path
) -> None:
    (folder / "config.json").write_text(json.dumps({"architectures": ["ViTModel"]}))
    call = f"run.publish({str(folder)!r}, step=1, golden='to be')"
    code, _, errors = publish(rank_server, folder, call)
    assert code == 1
    assert f"publish: {folder}: golden: only ...ForCausalLM, " in errors.splitlines()[-1]
    assert not list((folder.parent / MODELS).glob("*"))


def test_the_newest_three_and_the_best_are_kept_and_a_step_may_be_published_again(
    rank_server: RankServer, folder: Path
) -> None:
    call = f"""
for step, loss in (1, 9.0), (2, 1.5), (3, None), (4, 1.7), (5, None), (5, None), (6, 2.0):
    run.publish({str(folder)!r}, step=step, metrics={{"eval_loss": loss}})
"""
    code, _, errors = publish(rank_server, folder, call)
    assert code == 0, errors
    kept = sorted(path.name for path in (folder.parent / MODELS).iterdir())
    assert kept == [step_name(step) for step in (2, 4, 5, 6)]


def test_only_rank_0_publishes(rank_server: RankServer, folder: Path) -> None:
    call = f"run.rank = 1\nassert run.publish({str(folder)!r}, step=1) is None"
    assert publish(rank_server, folder, call)[0] == 0
    assert not (folder.parent / MODELS).exists()


@pytest.mark.parametrize(
    ("without", "line"),
    [
        ("config.json", "out has no config.json: write the folder with model.save_pretrained()"),
        ("model.safetensors", "out has no weights in *.safetensors files, the only ones that"),
        ("shard", "out lacks b.safetensors, which model.safetensors.index.json names"),
        ("step", "publish: which step is it? Pass step=, or report it before"),
        ("", "elsewhere is not a directory"),
    ],
)
def test_what_servers_could_not_load_is_one_line(
    rank_server: RankServer, folder: Path, without: str, line: str
) -> None:
    where, step = folder if without else folder.with_name("elsewhere"), ", step=1"
    if without == "shard":
        index = {"weight_map": {"a": "model.safetensors", "b": "b.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif without == "step":
        step = ""
    elif without:
        (folder / without).unlink()
    code, _, errors = publish(rank_server, folder, f"run.publish({str(where)!r}{step})")
    assert code == 1
    assert line in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("architecture", "app"),
    [
        ("GPT2LMHeadModel", GENERATE),
        ("LlamaForCausalLM", GENERATE),
        ("BertForSequenceClassification", CLASSIFY),
        ("ViTModel", None),
    ],
)
def test_trainyard_serve_chooses_the_app_by_the_model(
    tmp_path: Path, architecture: str, app: object
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    assert app_of_model(tmp_path) is app

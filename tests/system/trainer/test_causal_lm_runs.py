"""causal-lm-finetune in real processes: a pretrained model learns, exactly and to the end."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import parquet  # type: ignore[import-untyped]

from tests.support.trainer.ranks import ROOT, RankServer, Run, tiny_job
from trainyard_api.job import TrainerJob
from trainyard_storage.checkpoints import file_sha256, verify
from trainyard_trainer.config import parse_config
from trainyard_trainer.data.sampling import global_batch, rank_slice
from trainyard_trainer.recipes.causal_lm_finetune import CausalLMFinetune

DATA = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}: the real models and texts")

MakeJob = Callable[..., TrainerJob]
NOISE = np.zeros(0, dtype=np.uint64)
LORA = {"r": 4, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, rank_server: RankServer) -> Path:
    """rows.parquet; stories, a pretrained Llama with dropout; qwen2, a configuration only."""
    rank_server.preload(
        "transformers.models.llama.modeling_llama",
        "transformers.models.qwen2.modeling_qwen2",
        "transformers.models.qwen2.tokenization_qwen2",
        "peft",
        "pyarrow.parquet",
        "trainyard_trainer.recipes.causal_lm_finetune",
    )
    folder = tmp_path_factory.mktemp("finetune")
    rows = parquet.read_table(DATA / "arxiv_abstracts/train.parquet", columns=["title", "abstract"])
    parquet.write_table(rows.slice(0, 48), folder / "rows.parquet")
    shutil.copytree(DATA / "models/stories260K", folder / "stories")
    set_config(folder / "stories", attention_dropout=0.1)
    shutil.copytree(DATA / "configs/Qwen2-0.5B-Instruct", folder / "qwen2")
    shutil.copytree(DATA / "tokenizers/qwen2", folder / "qwen2", dirs_exist_ok=True)
    small = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64}
    set_config(folder / "qwen2", num_hidden_layers=2, hidden_size=32, **small)
    return folder


def set_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.fixture
def finetune(tmp_path: Path, folder: Path) -> MakeJob:
    """Builds a job on 32 titles, which differ in length; keyword arguments go into its config."""

    def make(job: dict[str, Any] | None = None, **config: Any) -> TrainerJob:
        settings = {
            "model": str(folder / "stories"),
            "dataset": str(folder / "rows.parquet"),
            "text_column": "title",
            "slice": {"start": 8, "end": 40},
            "eval_samples": 8,
            "max_length": 96,
            "batch_size": 8,
            "learning_rate": 3e-3,
            "num_epochs": 2,
            "log_steps": 1,
            "sample_tokens": 4,
        }
        if "max_steps" in config:
            del settings["num_epochs"]
        fields = {"checkpoint": {"everySteps": 3}} | (job or {})
        return tiny_job(tmp_path, "causal-lm-finetune", settings | config, **fields)

    return make


def check_bitwise_resume(whole: Run, make: MakeJob, train: Any, ranks: int) -> None:
    """Train once more, in two attempts: the same to the last bit."""
    job = {"run_dir": f"{whole.run_dir}-again"}
    train(make(job, num_epochs=1, lr_decay_steps=8), ranks)
    again = train(make({**job, "attempt": 2}), ranks)
    assert again.result["resumedFromStep"] == 4
    assert again.losses() == whole.losses()
    digests = [file_sha256(model_of(run, 8) / "model.safetensors") for run in (whole, again)]
    assert digests[0] == digests[1]
    base = [verify(model_of(run, 8)).metrics["base_eval_loss"] for run in (whole, again)]
    assert base[0] == base[1]


def model_of(run: Run, step: int) -> Path:
    return run.run_dir / "models" / f"step-{step:08d}"


def logits(directory: Path, adapter: Path | None = None) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        result: torch.Tensor = model.eval()(ids).logits
    return result


def test_two_ranks_improve_on_the_base_model(finetune: MakeJob, train: Any, folder: Path) -> None:
    run = train(finetune(), ranks=2)

    model = verify(model_of(run, 8))
    before, after = model.metrics["base_eval_loss"], model.metrics["eval_loss"]
    assert after < before - 0.3
    last = [line for line in run.out.splitlines() if line.startswith("step 8: ")]
    assert last[0].startswith(f"step 8: held-out loss {after:.4f}, perplexity ")
    assert f"(before training: held-out loss {before:.4f}, perplexity " in last[0]
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= model.files.keys()

    names = sorted(path.name for path in (run.run_dir / "epochs").iterdir())
    assert names == [f"stories_8-40-epoch-{epoch}.pt" for epoch in (1, 2)]
    epoch = torch.load(run.run_dir / "epochs" / names[-1])
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = AutoModelForCausalLM.from_pretrained(model_of(run, 8))
    for name, tensor in exported.state_dict().items():
        assert torch.equal(tensor, epoch["model_state_dict"][name])
    assert exported.generation_config.eos_token_id == 2
    assert len(AutoTokenizer.from_pretrained(model_of(run, 8))) == 512
    tied = epoch["model_state_dict"]
    assert tied["lm_head.weight"].data_ptr() == tied["model.embed_tokens.weight"].data_ptr()
    assert not torch.equal(logits(model_of(run, 8)), logits(folder / "stories"))
    check_bitwise_resume(run, finetune, train, ranks=2)


def test_the_loss_is_a_mean_over_the_tokens_of_the_whole_batch(
    finetune: MakeJob, train: Any, tmp_path: Path, folder: Path
) -> None:
    def losses(ranks: int, accumulation: int, strategy: str = "ddp") -> dict[int, float]:
        job = {"strategy": strategy, "run_dir": str(tmp_path / f"{ranks}-{accumulation}")}
        settings = {"gradient_accumulation_steps": accumulation, "eval_on_start": False}
        # A rate at which a step with other gradients would be seen in the next loss.
        plain = {"model": str(DATA / "models/stories260K"), "learning_rate": 1e-2, "max_steps": 2}
        run: Run = train(finetune(job, **plain, **settings), ranks=ranks)
        return run.losses()

    whole = losses(1, 1)
    assert losses(1, 4) == pytest.approx(whole, abs=1e-4)
    assert losses(2, 2) == pytest.approx(whole, abs=1e-4)
    assert losses(2, 1, "fsdp") == pytest.approx(whole, abs=1e-4)

    # A mean of the micro-batches' means would be another number.
    config = parse_config(CausalLMFinetune.Config, finetune().config)
    recipe = CausalLMFinetune(config, None)
    ids, model = global_batch(7, 0, 8, 32), recipe.build().eval()
    with torch.no_grad():
        shares = [rank_slice(ids, 0, 1, micro, 4) for micro in range(4)]
        means = [float(recipe.loss(model, recipe.train.fetch(share, NOISE))) for share in shares]
    counts = [int(recipe.weights(share).sum()) for share in shares]
    by_tokens = sum(m * n for m, n in zip(means, counts, strict=True)) / sum(counts)
    assert whole[1] == pytest.approx(by_tokens, abs=1e-4)
    assert abs(sum(means) / 4 - by_tokens) > 1e-2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft's
def test_lora_trains_little_and_exports_both_forms(
    finetune: MakeJob, train: Any, folder: Path
) -> None:
    from safetensors.torch import load_file

    def make(job: dict[str, Any] | None = None, **config: Any) -> TrainerJob:
        settings = {"lora": LORA, "learning_rate": 3e-2, "activation_checkpointing": True}
        forms = {"precision": "fp16", "strategy": "fsdp"}
        return finetune(forms | (job or {}), **settings | config)

    run = train(make())
    assert "0.26 million parameters, 4,480 of them trainable" in run.out
    metrics = verify(model_of(run, 8)).metrics
    assert metrics["eval_loss"] < metrics["base_eval_loss"] - 0.1
    adapter = model_of(run, 8) / "adapter"
    merged, apart = logits(model_of(run, 8)), logits(folder / "stories", adapter)
    torch.testing.assert_close(merged, apart, rtol=1e-4, atol=1e-4)
    assert (merged - logits(folder / "stories")).abs().max() > 0.1
    assert all("lora_" in name for name in load_file(adapter / "adapter_model.safetensors"))
    check_bitwise_resume(run, make, train, ranks=1)


def test_qwen2_from_scratch_answers_prompts(finetune: MakeJob, train: Any, folder: Path) -> None:
    settings = {
        "model": str(folder / "qwen2"),
        "from_scratch": True,
        "prompt": "{title}",
        "text_column": "abstract",
        "max_length": 64,
        "batch_size": 2,
        "max_steps": 2,
        "eval_samples": 2,
        "hub_model_id": "nobody/nothing",
    }
    run = train(finetune({"precision": "bf16"}, **settings), env={"HF_TOKEN": ""})
    assert "warning: upload failed: UploadError: config.hub_model_id: set HF_TOKEN" in run.err
    assert run.result["phase"] == "finished"
    metrics = verify(model_of(run, 2)).metrics
    assert metrics["eval_loss"] < metrics["base_eval_loss"]
    assert metrics["base_eval_loss"] == pytest.approx(11.93, abs=0.1)  # log of the vocabulary
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_of(run, 2))
    assert "<|im_start|>" in tokenizer.chat_template
    assert logits(model_of(run, 2)).shape == (1, 40, 151936)


def test_packed_rows_are_the_same_for_any_number_of_ranks(
    finetune: MakeJob, train: Any, tmp_path: Path
) -> None:
    plain = {"model": str(DATA / "models/stories260K"), "eval_on_start": False}
    settings = plain | {"packing": True, "max_length": 192, "batch_size": 6, "lr_decay_steps": 8}

    def go(name: str, ranks: int, attempt: int = 1, steps: int = 8, **more: Any) -> Run:
        strategy = more.pop("strategy", "ddp")
        job = {"run_dir": str(tmp_path / name), "attempt": attempt, "strategy": strategy}
        run: Run = train(finetune(job, **settings | more, max_steps=steps), ranks=ranks)
        return run

    whole = go("whole", 2)
    packed = re.search(
        r"32 texts, [\d,]+ tokens, packed into (\d+) rows, \d\d\.\d% full", whole.out
    )
    assert packed, whole.out
    assert 3 * 6 % int(packed[1]), "step 3 is in the middle of an epoch"
    sharded: dict[str, Any] = {"strategy": "fsdp", "activation_checkpointing": True}
    assert go("one", 1, gradient_accumulation_steps=3, **sharded).losses() == (
        pytest.approx(whole.losses(), abs=1e-4)
    )
    half = go("same", 2, steps=3)
    shutil.copytree(half.run_dir, tmp_path / "more")
    again, more = go("same", 2, attempt=2), go("more", 3, attempt=2)
    assert [run.result["resumedFromStep"] for run in (again, more)] == [3, 3]
    assert again.losses() == whole.losses()
    digests = [file_sha256(model_of(run, 8) / "model.safetensors") for run in (whole, again)]
    assert digests[0] == digests[1]
    assert more.losses() == pytest.approx(whole.losses(), abs=1e-4)

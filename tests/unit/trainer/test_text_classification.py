"""Recipe text-classification: exact runs, scores, a model transformers reads, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
import torch
import yaml
from pyarrow import parquet
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    PreTrainedTokenizerFast,
)

from tests.support.trainer.bucket import NAME, bucket
from trainyard_api.job import RUN_DIR_ENV, TrainerJob
from trainyard_api.run import TrainingRun
from trainyard_storage.checkpoints import file_sha256
from trainyard_trainer.config import check_batch_size, parse_config
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.text_classification import (
    TextClassification,
    TextClassificationConfig,
)

EXAMPLES = Path(__file__).parents[3] / "examples"
AG_NEWS = Path(__file__).parents[4] / "shared/data/ag_news"
NAMES = ["World", "Sports", "Business"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["peace", "goal", "market", "the", "a", "news", "of", "today", "big"]
SHAPE: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 64}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a word, in Hugging Face form."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocabulary[token]) for token in ("[SEP]", "[CLS]")]
    made.post_processor = processors.BertProcessing(*ends)
    directory = tmp_path_factory.mktemp("tokenizer")
    special = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    tokens = {f"{name}_token": token for name, token in special.items()}
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=made, **tokens).save_pretrained(directory)
    return directory


def table(rows: int, seed: int) -> pa.Table:
    """Texts of up to 12 words, one of which determines the class."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(rows) % 3)
    texts = []
    for label in labels:
        words = list(random.choice(WORDS[3:], random.integers(1, 12)))
        words.insert(int(random.integers(0, len(words) + 1)), WORDS[label])
        texts.append(" ".join(words))
    features = {"text": {"_type": "Value"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    note = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.table({"text": texts, "label": labels}).replace_schema_metadata(note)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("dataset")
    parquet.write_table(table(480, 1), directory / "train.parquet")
    parquet.write_table(table(50, 2), directory / "test.parquet")
    return directory


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(RUN_DIR_ENV, str(tmp_path / "runs/one"))


@pytest.fixture
def settings(dataset: Path, tokenizer: Path) -> dict[str, Any]:
    return {
        "dataset": str(dataset),
        "tokenizer": str(tokenizer),
        "from_scratch": SHAPE,
        "max_length": 10,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "log_steps": 1,
    }


@pytest.fixture
def text_job(
    make_job: Callable[..., TrainerJob], settings: dict[str, Any], rank_server: Any
) -> Callable[..., TrainerJob]:
    """As make_job, for text-classification; `job` replaces fields of the job."""
    rank_server.preload(
        "pyarrow.parquet",
        "transformers.models.auto.tokenization_auto",
        "transformers.models.distilbert.modeling_distilbert",
    )

    def make(job: dict[str, Any] | None = None, **config: Any) -> TrainerJob:
        made = make_job({"recipe": "text-classification"} | (job or {}))
        return made.model_copy(update={"config": settings | config})

    return make


@pytest.fixture
def recipe(settings: dict[str, Any]) -> Callable[..., TextClassification]:
    """The recipe alone, in this process; None removes a setting."""

    def make(saved: dict[str, Any] | None = None, **config: Any) -> TextClassification:
        chosen = {key: value for key, value in (settings | config).items() if value is not None}
        return TextClassification(parse_config(TextClassificationConfig, chosen), saved)

    return make


@pytest.fixture
def refusal(recipe: Callable[..., TextClassification]) -> Callable[..., str]:
    """What the recipe says of wrong settings."""

    def ask(**config: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            recipe(**config).build()
        return str(caught.value)

    return ask


@pytest.mark.slow
def test_two_processes_learn_and_leave_what_tools_expect(
    text_job: Callable[..., TrainerJob], train: Any, dataset: Path
) -> None:
    run = train(text_job(num_epochs=3, log_steps=20), ranks=2)
    evaluation = json.loads((run.run_dir / "evaluation.json").read_text())
    assert evaluation["labels"] == NAMES
    assert evaluation["accuracy"] > 0.9
    assert sum(map(sum, evaluation["confusion_matrix"])) == 50  # every text, and none twice
    assert "  true \\ predicted     World    Sports  Business   recall\n" in run.out
    per_epoch = [line["accuracy"] for line in run.history() if "accuracy" in line]
    assert len(per_epoch) == 3

    kept = run.run_dir / "epochs" / f"distilbert_{dataset.name}-epoch-3.pt"
    epoch = torch.load(kept, weights_only=True)
    assert sorted(epoch) == [
        *("accuracy", "config", "epoch"),
        *("loss", "model_state_dict", "optimizer_state_dict"),
    ]
    assert (epoch["epoch"], epoch["accuracy"]) == (3, evaluation["accuracy"])

    directory = run.run_dir / "models" / "step-00000180"
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label2id["Sports"] == 1
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, epoch["model_state_dict"][name])
    rows = parquet.read_table(dataset / "test.parquet")
    encode = AutoTokenizer.from_pretrained(directory)
    assert encode.model_max_length == 10
    batch = encode(rows["text"].to_pylist(), truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
    labels = torch.tensor(rows["label"].to_pylist())
    assert (logits.argmax(1) == labels).float().mean() == pytest.approx(evaluation["accuracy"])
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert loss.item() == pytest.approx(evaluation["eval_loss"], rel=1e-4)


def test_a_resumed_run_is_the_same_to_the_last_bit(
    text_job: Callable[..., TrainerJob], train: Any, tmp_path: Path
) -> None:
    def weights(run: Any) -> str:
        return file_sha256(run.run_dir / "models/step-00000008/model.safetensors")

    one = {"max_steps": 8, "eval_steps": 4}
    job = {"checkpoint": {"everySteps": 4}}
    whole = train(text_job(job | {"run_dir": str(tmp_path / "whole")}, **one))
    train(text_job(job, max_steps=4, lr_decay_steps=8))
    resumed = train(text_job(job | {"attempt": 2}, **one, dataloader_num_workers=2))
    assert resumed.result["resumedFromStep"] == 4
    assert weights(resumed) == weights(whole)


def test_ranks_and_attempts_share_what_they_read_from_a_bucket(
    text_job: Callable[..., TrainerJob], train: Any, dataset: Path, tmp_path: Path
) -> None:
    def weights(name: str, source: str, **options: Any) -> str:
        job = {"run_dir": str(tmp_path / name)}
        config = {"dataset": source, "max_steps": 2, "dataloader_num_workers": 1}
        run = train(text_job(job, **config), ranks=2, **options)
        assert f"{source}: 480 texts to train on" in run.out
        return file_sha256(run.run_dir / "models/step-00000002/model.safetensors")

    here = weights("here/run", str(dataset))
    with bucket() as server:
        server.upload(dataset, "news")
        source, env = f"s3://{NAME}/news", server.environment
        assert weights("there/first", source, env=env) == here
        # Of each file, each rank reads the end; one of them the labels and the texts, and of the
        # test split some texts to show.
        assert len(server.read) <= 2 * 2 + 2 * 2 + 1
        server.read.clear()
        assert weights("there/second", source, env=env) == here
        assert len(server.read) == 2 * 2


@pytest.mark.slow
def test_processes_and_fsdp_change_nothing(
    text_job: Callable[..., TrainerJob], train: Any, tmp_path: Path
) -> None:
    def losses(name: str, ranks: int, strategy: str = "ddp", **config: Any) -> list[float]:
        job = {"run_dir": str(tmp_path / name), "strategy": strategy}
        still = dict.fromkeys(("dropout", "attention_dropout", "seq_classif_dropout"), 0.0)
        run = train(text_job(job, max_steps=4, **still, **config), ranks=ranks)
        return [*run.losses().values(), run.result["evalLoss"]]

    one = losses("one", 1)
    assert losses("sharded", 2, "fsdp", activation_checkpointing=True) == pytest.approx(one, 1e-4)
    assert losses("small", 1, gradient_accumulation_steps=4) == pytest.approx(one, 1e-4)


def test_batches_are_what_the_tokenizer_makes(
    recipe: Callable[..., TextClassification], dataset: Path
) -> None:
    made = recipe()
    texts = parquet.read_table(dataset / "train.parquet")["text"].to_pylist()
    for multiple, ids in ((1, [3, 95, 17, 3]), (8, [0]), (8, list(range(96)))):
        made.train.multiple = multiple
        batch = made.train.fetch(np.array(ids), np.zeros(len(ids), np.uint64))
        expected = made.tokenizer(
            [texts[i] for i in ids],
            truncation=True,
            max_length=10,
            padding="max_length",
            return_tensors="pt",
        )
        longest = int(expected["attention_mask"].sum(1).max())
        length = longest if multiple == 1 else 8 if longest <= 8 else 10
        assert torch.equal(batch["input_ids"], expected["input_ids"][:, :length])
        assert torch.equal(batch["attention_mask"].long(), expected["attention_mask"][:, :length])
    lengths = made.held_out.lengths()
    assert (np.diff(lengths) >= 0).all()
    assert sorted(made.held_out.labels) == sorted(table(50, 2)["label"].to_pylist())


@pytest.mark.skipif(not AG_NEWS.is_dir(), reason=f"{AG_NEWS} is not here")
def test_ag_news_brings_its_classes(
    recipe: Callable[..., TextClassification], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        rows = parquet.read_table(AG_NEWS / f"{split}.parquet").slice(0, 40)
        parquet.write_table(rows, tmp_path / f"{split}.parquet")
    made = recipe(
        dataset=str(tmp_path),
        tokenizer=str(AG_NEWS.parent / "tokenizers/distilbert-base-uncased"),
        max_length=32,
    )
    assert made.classes == ["World", "Sports", "Business", "Sci/Tech"]
    first = parquet.read_table(AG_NEWS / "train.parquet")["text"][0].as_py()
    text = str(made.tokenizer.decode(made.train[0], skip_special_tokens=True)).replace(" ", "")
    assert first.lower().replace(" ", "").startswith(text)


def test_a_pretrained_model_is_used_and_nothing_else(
    recipe: Callable[..., TextClassification],
    refusal: Callable[..., str],
    tokenizer: Path,
    tmp_path: Path,
) -> None:
    chosen: dict[str, Any] = {"from_scratch": None, "tokenizer": None}
    directory = tmp_path / "distilbert"
    shape = DistilBertConfig(**SHAPE, vocab_size=14, max_position_embeddings=16)
    encoder = DistilBertModel(shape)
    encoder.save_pretrained(directory)
    for file in tokenizer.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    made = recipe(**chosen, model=str(directory), dropout=0.3)
    model: Any = made.build()
    for name, weight in encoder.state_dict().items():
        assert torch.equal(model.distilbert.state_dict()[name], weight)
    assert model.classifier.weight.shape == (3, 32)
    assert (model.distilbert.embeddings.dropout.p, model.dropout.p) == (0.3, 0.2)

    where = str(directory)
    assert "max_length: 17 tokens" in refusal(**chosen, model=where, max_length=17)
    weights = directory / "model.safetensors"
    weights.rename(directory / "kept")
    assert "has no weights" in refusal(**chosen, model=where)
    GPT2Config().save_pretrained(directory)
    assert "is a gpt2; give a DistilBERT" in refusal(**chosen, model=where)
    (directory / "kept").rename(weights)

    def other_shape(**changed: Any) -> str:
        sizes = SHAPE | {"vocab_size": 14, "max_position_embeddings": 16} | changed
        DistilBertConfig(**sizes).save_pretrained(directory)
        return refusal(**chosen, model=where)

    assert "lack distilbert.transformer.layer.2" in other_shape(n_layers=3)
    assert "has the shape (14, 32), not (15, 32)" in other_shape(vocab_size=15)
    assert "has 14 tokens, but the model" in other_shape(vocab_size=13)


def test_wrong_input_is_one_clear_line(
    refusal: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    def rows(text: Any = None, label: Any = None) -> str:
        """What is said of a data set with these values in its first rows."""
        texts, labels = (table(6, 3)[name].to_pylist() for name in ("text", "label"))
        texts[: len(text or [])] = text or []
        labels[: len(label or [])] = label or []
        if isinstance(labels[0], str):
            labels = [str(each) for each in labels]
        note = table(1, 1).schema.metadata
        data = pa.table({"text": texts, "label": labels}).replace_schema_metadata(note)
        parquet.write_table(data, tmp_path / "train.parquet")
        parquet.write_table(table(9, 2), tmp_path / "test.parquet")
        return refusal(dataset=str(tmp_path)).replace(str(tmp_path), "D")

    assert rows(label=[0, 3]).startswith("config.dataset: D: label of train: row 1 has label 3;")
    assert "label of train holds string; " in rows(label=["no"])
    assert "no row of 6 has label 1 (Sports)" in rows(label=[0, 0, 0, 2, 2, 2])
    assert "text of train: row 1 is empty; " in rows(text=["a", " \n"])
    assert "text of train: row 0 is empty; " in rows(text=[None])
    assert refusal(text_column="body").endswith("has no column body; it has text, label")
    assert "label_column and text_column are both label" in refusal(text_column="label")
    assert "no row of 480 has label 3 (q)" in refusal(labels=["x", "y", "z", "q"])
    assert "without a test split" in refusal(dataset=str(dataset / "train.parquet"))
    assert "set model (pretrained) or from_scratch, not both" in refusal(model="x")
    assert "from_scratch needs a tokenizer" in refusal(tokenizer=None)
    assert "n_heads (3) must divide dim (32)" in refusal(from_scratch=SHAPE | {"n_heads": 3})
    assert "config.from_scratch.n_layrs: unknown key" in refusal(from_scratch={"n_layrs": 1})


def test_a_resumed_run_refuses_other_samples(recipe: Callable[..., TextClassification]) -> None:
    saved = recipe().state()
    recipe(saved).check_data(saved)
    other = recipe(saved, max_length=9)
    with pytest.raises(ConfigError, match="trained on, with this tokenizer; undo the change, or"):
        other.check_data(saved)


@pytest.mark.parametrize("name", ["ag-news-1gpu", "ag-news-ddp", "ag-news-cpu"])
def test_the_ag_news_examples_are_jobs(name: str) -> None:
    run = TrainingRun.model_validate(yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()))
    assert run.spec.recipe == "text-classification"
    config = parse_config(TextClassificationConfig, run.spec.config or {})
    check_batch_size(config, run.spec.num_nodes * run.nproc)

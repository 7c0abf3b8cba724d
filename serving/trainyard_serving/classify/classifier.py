"""A text classifier in memory: loads a verified directory and computes classes of texts."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from trainyard_api.golden import (
    EvaluationText,
    GoldenClasses,
    InvalidGoldenError,
    read_evaluation,
)
from trainyard_serving.batcher import EncodedText
from trainyard_serving.errors import BadModelError, one_line
from trainyard_serving.model_store.verified import VerifiedModel, golden_request

if TYPE_CHECKING:
    from trainyard_serving.settings import ClassifySettings

log = logging.getLogger(__name__)

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

INT8_LOSS = 0.003  # accuracy that int8 may cost
SAMPLE_TOLERANCE = 0.05  # the model has only some of the texts that the run was evaluated on
GOLDEN_TOLERANCE = 0.01  # of a probability
BATCH = 32


class Engine(Protocol):
    """Computes a classifier's logits.

    Attributes:
        precision: of its weights: `fp32` or `int8`.
    """

    precision: str

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """Logits (B, C) of token ids (B, T); the mask (B, T) is 1 where there is text."""


class Classifier:
    """A loaded model. It never changes; a request keeps the one it started with.

    Attributes:
        labels: names of the classes, in the order of the probabilities.
        details: additional fields of /health and /ready.
    """

    def __init__(
        self, source: VerifiedModel, tokenizer: Any, labels: list[str], engine: Engine
    ) -> None:
        self.source = source
        self.labels = labels
        self.engine = engine
        self.details: dict[str, Any] = {}
        self._tokenizer = tokenizer
        self._min_accuracy: float | None = None
        self._check_texts: list[EvaluationText] = []
        self._accuracy: float | None = None  # of the engine, once it has been measured

    @classmethod
    def load(cls, source: VerifiedModel, settings: "ClassifySettings") -> Self:
        """Load a verified directory in Hugging Face format, with the engine of the settings.

        Raises BadModelError when it contains no text classifier, ModelUnavailableError when the
        device is not available.
        """
        import transformers
        from transformers import AutoTokenizer

        from trainyard_serving.classify.torch_engine import TorchEngine
        from trainyard_serving.loading import LOAD_ERRORS, check_vocabulary

        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        device = "cpu" if settings.engine == "onnx" else settings.device
        try:
            tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
            torch_engine = TorchEngine.load(source, device, settings.threads)
            embeddings = torch_engine.model.get_input_embeddings()
            check_vocabulary(tokenizer, embeddings.weight.shape[0])
        except LOAD_ERRORS as error:
            message = f"{source.path}: cannot be loaded: {one_line(error, 500)}"
            raise BadModelError(message) from error
        names = torch_engine.model.config.id2label
        labels = [str(names[number]) for number in sorted(names)]
        loaded = cls(source, tokenizer, labels, torch_engine)
        loaded._read_texts(settings)
        if settings.engine == "onnx":
            loaded._to_onnx(torch_engine, settings)
        loaded.details = {
            "engine": settings.engine,
            "precision": loaded.engine.precision,
            **loaded.details,
        }
        return loaded

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, truncated to the model's context."""
        ids: list[list[int]] = self._tokenizer(texts, truncation=True, verbose=False)["input_ids"]
        return ids

    def probabilities(self, encoded: Sequence[EncodedText]) -> Floats:
        """Probabilities (texts, classes) of one or more texts encoded by `encode`."""
        longest = max(len(ids) for ids in encoded)
        padded = np.full((len(encoded), longest), self._tokenizer.pad_token_id or 0, np.int64)
        mask = np.zeros_like(padded)
        for row, ids in enumerate(encoded):
            padded[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        logits = self.engine.logits(padded, mask)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: Floats = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities

    def check(self) -> None:
        """Answer the golden request and classify the evaluation texts exported with the model.

        Raises BadModelError when an answer differs from the trainer's, or the accuracy is too low.
        """
        self._check_golden()
        if self._min_accuracy is None:
            return
        if self._accuracy is None:
            self._accuracy = self._measure()
        if self._accuracy < self._min_accuracy:
            raise BadModelError(
                f"{self.source.path}: accuracy is {self._accuracy:.1%} on"
                f" {len(self._check_texts)} evaluation texts; at least {self._min_accuracy:.1%} is"
                " required"
            )

    def _read_texts(self, settings: "ClassifySettings") -> None:
        """Read the evaluation texts and the required accuracy: the settings', or else the run's."""
        where = self.source.path
        try:
            texts = read_evaluation(where)
        except InvalidGoldenError as error:
            raise BadModelError(str(error)) from None
        if any(text.label >= len(self.labels) for text in texts):
            raise BadModelError(
                f"{where}: its evaluation texts have classes that the model does not have"
            )
        limit = settings.check_texts if settings.precision == "fp32" else len(texts)
        self._check_texts = texts[:limit]
        manifest = self.source.manifest
        reported = manifest.metrics.get("accuracy") if manifest else None
        if settings.min_accuracy is not None:
            if not texts:
                raise BadModelError(f"{where}: has no evaluation texts to measure min_accuracy on")
            self._min_accuracy = settings.min_accuracy
        elif texts and reported is not None:
            self._min_accuracy = reported - SAMPLE_TOLERANCE

    def _to_onnx(self, torch_engine: Any, settings: "ClassifySettings") -> None:
        from trainyard_serving.classify.onnx_engine import OnnxFiles

        try:
            files = OnnxFiles(torch_engine.model)
        except BadModelError as error:
            raise BadModelError(f"{self.source.path}: {error}") from None
        try:
            self.engine = files.engine("fp32", settings.threads)
            if settings.precision == "int8":
                self._check_golden()
                self._to_int8(files.engine("int8", settings.threads))
        finally:
            files.close()

    def _to_int8(self, int8: Engine) -> None:
        """Use int8 if it costs at most INT8_LOSS of accuracy; otherwise keep fp32 and report it."""
        if not self._check_texts:
            self._keep_fp32("the model has no evaluation texts to check int8 on")
            return
        fp32, self._accuracy = self.engine, self._measure()
        before, self.engine = self._accuracy, int8
        self._accuracy = self._measure()
        if self._accuracy < before - INT8_LOSS:
            cost = f"int8 costs {100 * (before - self._accuracy):.1f} points of accuracy"
            self.engine, self._accuracy = fp32, before
            self._keep_fp32(f"{cost} (at most {100 * INT8_LOSS:.1f})")
            return
        self.details = {
            "fp32_accuracy": round(before, 4),
            "int8_accuracy": round(self._accuracy, 4),
        }

    def _keep_fp32(self, reason: str) -> None:
        log.warning("serving fp32: %s", reason)
        self.details = {"note": f"serving fp32: {reason}"}

    def _measure(self) -> float:
        """Accuracy on the evaluation texts."""
        correct = 0
        ordered = sorted(self._check_texts, key=lambda text: len(text.text))
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            classes = self.probabilities(self.encode([text.text for text in batch])).argmax(axis=1)
            correct += sum(int(a) == text.label for a, text in zip(classes, batch, strict=True))
        return correct / len(ordered)

    def _check_golden(self) -> None:
        where = self.source.path
        golden = golden_request(self.source, GoldenClasses)
        if golden is None:
            if not np.isfinite(self.probabilities(self.encode(["a", "b b"]))).all():
                raise BadModelError(f"{where}: the model computes NaN")
            return
        if golden.labels != self.labels:
            raise BadModelError(f"{where}: golden.json has other classes than config.json")
        probabilities = self.probabilities(self.encode(golden.texts))
        difference = float(np.abs(probabilities - np.array(golden.probabilities)).max())
        # Weights of 8 bits change probabilities; their accuracy is measured on more texts.
        if not difference <= (GOLDEN_TOLERANCE if self.engine.precision == "fp32" else 1):
            raise BadModelError(
                f"{where}: the model's probabilities differ from the trainer's by"
                f" {difference:.3g} (at most {GOLDEN_TOLERANCE})"
            )

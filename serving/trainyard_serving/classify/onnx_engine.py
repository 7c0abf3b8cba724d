"""Engine onnx: the model exported to ONNX Runtime, in fp32 or with int8 weights."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from trainyard_serving.classify.classifier import Floats, Ids
from trainyard_serving.errors import BadModelError

TOLERANCE = 1e-3  # of logits, between PyTorch and ONNX Runtime in fp32
INPUTS = ("input_ids", "attention_mask")


class OnnxEngine:
    """An inference session of ONNX Runtime."""

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: one per core
        options.inter_op_num_threads = 1
        # Threads that spin between requests would occupy the event loop's core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.precision = precision
        self._session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        output = self._session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))
        logits: Floats = output[0]
        return logits


class OnnxFiles:
    """A model exported to a temporary directory, until `close`."""

    def __init__(self, model: Any) -> None:
        """Export `model`, a sequence classification model of transformers, on the CPU.

        Raises BadModelError when the exported model computes different logits.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="trainyard-onnx-")
        self._fp32 = Path(self._folder.name) / "fp32.onnx"
        _export(model, self._fp32)
        self._check(model)

    def engine(self, precision: str, threads: int) -> OnnxEngine:
        """A session; it does not need the files any more."""
        if precision == "fp32":
            return OnnxEngine(self._fp32, precision, threads)
        from onnxruntime.quantization import (  # type: ignore[import-untyped]
            QuantType,
            quantize_dynamic,
        )

        file = self._fp32.with_name("int8.onnx")
        # Quantises the weights of every matrix product; activations are scaled dynamically.
        quantize_dynamic(
            self._fp32,
            file,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={"MatMulConstBOnly": True},
        )
        return OnnxEngine(file, precision, threads)

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def _check(self, model: Any) -> None:
        """Compare logits with PyTorch's, for another shape than the traced one, with padding."""
        ids = np.random.default_rng(0).integers(model.config.vocab_size, size=(3, 12))
        mask = (np.arange(12) < np.array([[12], [5], [1]])).astype(np.int64)
        with torch.inference_mode():
            expected = model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            ).logits.numpy()
        difference = np.abs(self.engine("fp32", 1).logits(ids, mask) - expected).max()
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise BadModelError(f"exported to ONNX, its logits differ by {difference:.3g}")


class _Logits(nn.Module):
    """The model with tensors as its only inputs and its only output, as ONNX needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _export(model: Any, file: Path) -> None:
    ids = torch.ones(2, 9, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # a mask of ones would be traced as a constant
    sizes = {name: {0: "batch", 1: "tokens"} for name in INPUTS} | {"logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # the tracing exporter is deprecated, but fast and sufficient
        torch.onnx.export(
            _Logits(model).eval(),
            (ids, mask),
            file,
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes=sizes,
            dynamo=False,
        )

"""Engine onnx: the model exported to ONNX Runtime, in 32 bits or with weights of 8."""

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # type: ignore[import-untyped]
import torch
from torch import Tensor, nn

from trainyard_serving.classify.engine import Floats, Ids
from trainyard_serving.errors import BadModelError

TOLERANCE = 1e-3  # of logits, between PyTorch and ONNX Runtime, both in 32 bits
INPUTS = ("input_ids", "attention_mask")


class OnnxEngine:
    """A session of ONNX Runtime."""

    def __init__(self, file: Path, precision: str, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads  # 0: one per core
        options.inter_op_num_threads = 1
        # Threads that spin between requests would take the event loop's core.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.precision = precision
        self._session = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        (logits,) = self._session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))
        found: Floats = logits
        return found


class OnnxFiles:
    """An exported model on this machine's disk, for as long as this object lives."""

    def __init__(self, model: Any) -> None:
        """Export `model`, a sequence classification model of transformers, on the CPU.

        Raises BadModelError when it computes other logits there.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="trainyard-onnx-")
        self._fp32 = Path(self._folder.name) / "fp32.onnx"
        _export(model, self._fp32)
        self._check(model)

    def engine(self, precision: str, threads: int) -> OnnxEngine:
        """A session; the files may be closed once it is there."""
        if precision == "fp32":
            return OnnxEngine(self._fp32, precision, threads)
        from onnxruntime.quantization import (  # type: ignore[import-untyped]
            QuantType,
            quantize_dynamic,
        )

        file = self._fp32.with_name("int8.onnx")
        # Weights of every matrix product; activations are scaled as they come.
        quantize_dynamic(
            self._fp32,
            file,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Gemm"],
            extra_options={"MatMulConstBOnly": True},
        )
        return OnnxEngine(file, precision, threads)

    def close(self) -> None:
        """Remove the files: sessions have read them."""
        self._folder.cleanup()

    def _check(self, model: Any) -> None:
        """Other shapes than the traced one, padding included, must give PyTorch's logits."""
        ids = np.random.default_rng(0).integers(model.config.vocab_size, size=(3, 12))
        mask = (np.arange(12) < np.array([[12], [5], [1]])).astype(np.int64)
        with torch.inference_mode():
            wanted = model(
                input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask)
            ).logits.numpy()
        difference = np.abs(self.engine("fp32", 1).logits(ids, mask) - wanted).max()
        if not difference <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
            raise BadModelError(
                f"exported to ONNX it computes other logits, off by {difference:.3g}"
            )


class _Logits(nn.Module):
    """The model with what ONNX can have: tensors in, one tensor out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return logits


def _export(model: Any, file: Path) -> None:
    ids = torch.ones(2, 9, dtype=torch.int64)
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0  # a mask that hides nothing would be traced away
    sizes = {name: {0: "batch", 1: "tokens"} for name in INPUTS} | {"logits": {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter is old, quick, and enough
        torch.onnx.export(
            _Logits(model).eval(),
            (ids, mask),
            file,
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_axes=sizes,
            dynamo=False,
        )

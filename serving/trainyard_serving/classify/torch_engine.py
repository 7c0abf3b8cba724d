"""Engine torch: the model in PyTorch, in fp32."""

from typing import Any, Self

import torch
from transformers import AutoModelForSequenceClassification

from trainyard_serving.classify.classifier import Floats, Ids
from trainyard_serving.loading import check_weights, torch_device
from trainyard_serving.model_store.verified import VerifiedModel


class TorchEngine:
    """A sequence classification model of transformers."""

    precision = "fp32"

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model
        self._device = device

    @classmethod
    def load(cls, source: VerifiedModel, device: str, threads: int) -> Self:
        """Load a verified directory.

        Raises ModelUnavailableError when the device is not available, OSError or ValueError when
        the directory contains no such model.
        """
        device = torch_device(device, threads)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            source.path,
            local_files_only=True,
            use_safetensors=True,  # pickled weights can run code
            dtype=torch.float32,
            output_loading_info=True,
        )
        check_weights(report)
        model.requires_grad_(False).train(False)
        return cls(model.to(device), torch.device(device))

    @torch.inference_mode()
    def logits(self, ids: Ids, mask: Ids) -> Floats:
        output = self.model(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=torch.from_numpy(mask).to(self._device),
        )
        logits: Floats = output.logits.float().cpu().numpy()
        return logits

"""Copies of a state on the CPU, which a save writes while training continues."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Staging:
    """Copies tensors into buffers that are reused for every save: allocation costs more than the
    copy.

    From a GPU the buffers are pinned, and the copies run on a stream of their own, all at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}
        self._stream: torch.cuda.Stream | None = None

    def mark(self) -> torch.cuda.Event | None:
        """What a GPU has to reach before the copy may begin: all work that is queued by now."""
        if self._device.type != "cuda":
            return None
        event: torch.cuda.Event = torch.cuda.current_stream(self._device).record_event()
        return event

    @torch.no_grad()
    def copy(
        self, state: Mapping[str, Tensor], ready: torch.cuda.Event | None
    ) -> dict[str, Tensor]:
        """The copies, valid until the next call; `ready`: what `mark` returned for this state."""
        self._buffers = {name: copy for name, copy in self._buffers.items() if name in state}
        for name, tensor in state.items():
            copy = self._buffers.get(name)
            if copy is None or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
                self._buffers[name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=ready is not None
                )
        if ready is None:
            for name, tensor in state.items():
                self._buffers[name].copy_(tensor)
            return dict(self._buffers)
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self._stream.wait_event(ready)
        with torch.cuda.stream(self._stream):
            for name, tensor in state.items():
                self._buffers[name].copy_(tensor, non_blocking=True)
        self._stream.synchronize()
        return dict(self._buffers)

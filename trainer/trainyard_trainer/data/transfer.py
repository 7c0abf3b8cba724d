"""Copies batches to the device: to a GPU beside the computation, on a stream of its own."""

from dataclasses import dataclass

import torch

from trainyard_trainer.data.sampling import Batch


@dataclass(frozen=True)
class Copy:
    """A batch on its way to a GPU. `done`: recorded on the copying stream."""

    batch: Batch
    done: torch.cuda.Event


class Transfer:
    """Copies to one GPU."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, batch: Batch) -> Copy:
        """Start to copy a batch; returns at once."""
        with torch.cuda.stream(self._stream):
            copied = on_device(batch, self._device)
            return Copy(copied, self._stream.record_event())

    def finish(self, copy: Copy) -> Batch:
        """The batch on the GPU: the current stream waits for it, the CPU does not."""
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copy.done)
        for tensor in copy.batch.values():
            # The copying stream made it, and may reuse its memory only after this stream's work.
            tensor.record_stream(stream)
        return copy.batch


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on `device`, copied asynchronously; on a CPU the batch itself."""
    if device.type == "cpu":
        return batch
    # Only a copy from memory that is contiguous and pinned is asynchronous.
    return {
        name: tensor.contiguous().pin_memory().to(device, non_blocking=True)
        for name, tensor in batch.items()
    }

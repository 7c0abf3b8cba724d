"""What computes a classifier's logits."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Engine(Protocol):
    """A model that computes.

    Attributes:
        precision: of its weights: `fp32` or `int8`.
    """

    precision: str

    def logits(self, ids: Ids, mask: Ids) -> Floats:
        """Token ids (B, T) and their mask, 1 where there is text, to logits (B, C)."""

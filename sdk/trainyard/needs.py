"""What parts of this package need that `import trainyard` alone does not."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

MIN_PYTHON = (3, 11)


@contextlib.contextmanager
def needs(what: str) -> Iterator[None]:
    """Says in one line what to install, if the imports in the block fail."""
    if sys.version_info < MIN_PYTHON:
        version = ".".join(map(str, sys.version_info[:2]))
        raise ImportError(f"{what} needs Python 3.11 or newer; this is {version}")
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{what} needs {error.name}: pip install 'trainyard[checkpoint]'"
        ) from None

"""Delays the import of torch._dynamo, which eager training never uses.

torch's optimizers and DistributedDataParallel import torch._dynamo (and with it sympy and
inductor: about as long as importing torch itself) only to mark their functions as not to be
compiled. A stand-in provides those markers; any other use of the module imports the real one in its
place. This shortens the time to the first step of a restarted run.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

_NAME = "torch._dynamo"


def _disable(fn: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
    return fn


class _Deferred(ModuleType):
    """The attributes of torch._dynamo that eager code uses; any other loads the real module."""

    disable = staticmethod(_disable)
    graph_break = staticmethod(lambda *_, **__: None)
    utils = SimpleNamespace(get_optimize_ddp_mode=lambda: "ddp_optimizer")
    # destroy_process_group clears a cache that, without the real module, is empty.
    trace_rules = SimpleNamespace(clear_lru_cache=lambda: None)

    def __getattr__(self, name: str) -> Any:
        # The import system probes these on every module; the path is needed by real imports.
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(_NAME) is self:
            del sys.modules[_NAME]
            del torch._dynamo  # torch then looks for the real one by itself
        return getattr(importlib.import_module(_NAME), name)


def defer_dynamo() -> None:
    """Install the stand-in; no effect once the real module is imported."""
    if _NAME not in sys.modules:
        stand_in = _Deferred(_NAME)
        sys.modules[_NAME] = stand_in
        torch._dynamo = stand_in

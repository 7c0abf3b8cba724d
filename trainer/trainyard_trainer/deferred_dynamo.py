"""Start without torch.compile's machinery, which eager training never uses.

torch's optimizers and DistributedDataParallel import torch._dynamo (and with it sympy and
inductor: about as long as importing torch itself) only to mark their functions as not to be
compiled. Until something really compiles, a stand-in answers those marks; any other use of the
module loads the real one in its place. Start to first step is what a restarted run waits for.
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
    """What eager code asks of torch._dynamo; everything else is the real module's."""

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
    """Put the stand-in where torch's eager code looks; does nothing once the real one is there."""
    if _NAME not in sys.modules:
        stand_in = _Deferred(_NAME)
        sys.modules[_NAME] = stand_in
        torch._dynamo = stand_in

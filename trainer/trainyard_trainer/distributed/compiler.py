"""Compiles the parts of a model with torch.compile, and says what came of it.

The parts are compiled one by one, and not the model as a whole: equal layers are compiled once,
FSDP's hooks run between them, and DDP reduces the gradients of one layer while those of the next
are computed.
"""

import functools
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainyard_api.job import RUN_DIR_ENV
from trainyard_trainer.errors import ConfigError

BACKEND = "inductor"
_BLOCK = "block"
_VERSIONS = 8  # of a block: for training and evaluation, each for several lengths


@dataclass
class _Part:
    """Something that is compiled. `graphs`: how many of them its first call ran."""

    name: str
    graphs: int = 0


class Compiler:
    """Compiles parts of one model."""

    def __init__(self, device: torch.device) -> None:
        """Raises ConfigError if there is no compiler for the kernels."""
        check_compiler(device)
        from torch._dynamo.backends.registry import lookup_backend

        compile_graph: Any = lookup_backend(BACKEND)
        self._parts: list[_Part] = []
        self._runs = 0  # of compiled graphs

        def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
            run = compile_graph(graph, inputs)

            def counted(*args: Any) -> Any:
                self._runs += 1
                return run(*args)

            return counted

        self._backend = backend  # one object, or equal blocks would not share what it compiled

    def compile_blocks(self, blocks: Sequence[nn.Module]) -> None:
        """Compile the forward pass of each."""
        import torch._dynamo.config

        for block in blocks:
            self.compile(_BLOCK, block, "forward")
        # By default torch splits a graph in two where a bucket of DDP is full, so that it can be
        # reduced meanwhile: a block of GPT-2 has 28 MB of gradients, a bucket 25. Between the
        # blocks there are gaps enough.
        torch._dynamo.config.optimize_ddp = False
        # All blocks of a class share this limit. What is beyond it would run eagerly.
        torch._dynamo.config.recompile_limit = _VERSIONS * len(blocks)

    def compile(self, name: str, owner: object, method: str) -> None:
        """Compile a method in place; parameters keep their names. `name`: for the console."""
        function = getattr(owner, method)
        compiled: Any = torch.compile(function, backend=self._backend)
        part = _Part(name)
        self._parts.append(part)

        @functools.wraps(function)
        def first_call(*args: Any, **kwargs: Any) -> Any:
            before = self._runs
            output = compiled(*args, **kwargs)
            part.graphs = self._runs - before
            setattr(owner, method, compiled)
            return output

        setattr(owner, method, first_call)

    def report(self) -> str:
        """What was compiled, when every part has been called.

        Raises ConfigError if nothing was; torch.compile itself is silent then.
        """
        compiled = [part for part in self._parts if part.graphs]
        if not compiled:
            raise ConfigError(
                f"config.compile: PyTorch can't compile any of {_names(self._parts)}; set compile"
                " to false"
            )
        text = f"compiled: {_names(compiled)}"
        if broken := [part for part in compiled if part.graphs > 1]:
            text += f"; in several graphs each: {_names(broken)}"
        if left := [part for part in self._parts if not part.graphs]:
            text += f"; not compiled: {_names(left)}"
        return text


def _names(parts: Iterable[_Part]) -> str:
    """Such as: 12 blocks, the final norm and the loss."""
    counts = Counter(part.name for part in parts)
    *names, last = (
        f"{count} {name if count == 1 else f'{name}s'}" if name == _BLOCK else name
        for name, count in counts.items()
    )
    return f"{', '.join(names)} and {last}" if names else last


def keep_kernels() -> None:
    """Keep compiled kernels in the run's directory, from which the next attempt loads them.

    To be called before torch's compiler is imported, which sets the variable itself.
    """
    if run_dir := os.environ.get(RUN_DIR_ENV):
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(run_dir) / ".kernels"))


def check_compiler(device: torch.device) -> None:
    """Raise ConfigError if torch.compile has no compiler for its kernels."""
    variable, names = ("CC", ("gcc", "clang"))
    if device.type == "cpu":
        variable, names = ("CXX", ("g++", "clang++"))
    if not os.environ.get(variable) and not any(map(shutil.which, names)):
        raise ConfigError(
            f"config.compile: torch.compile needs {' or '.join(names)}, which is not installed;"
            " install it (in the pods' image), or set compile to false"
        )

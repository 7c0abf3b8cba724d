"""State of a script's objects: tensors beside the model's, the rest as JSON where it is JSON.

What is not JSON goes into a file that torch loads with weights_only, so that no checkpoint can run
code.
"""

import base64
import copy
import io
import json
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainyard_trainer.checkpoint.state import OTHERS
from trainyard_trainer.errors import CheckpointError, ConfigError

# How an optimizer computes its step, which depends on the device: a script's own choice stays.
_IMPLEMENTATION = ("fused", "foreach", "capturable")
FORMAT = 1  # of SCRIPT_FILE; a newer one is refused
PICKLED_FILE = "script.pt"  # the values that are not JSON; absent where there are none

# In place of a value: the name of a tensor, the items of a tuple, the content of an array.
_TENSOR, _TUPLE, _ARRAY = "__tensor__", "__tuple__", "__ndarray__"


class Stateful(Protocol):
    """What a checkpoint can include: as torch's optimizers, schedulers and modules have it."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def load(target: Stateful, state: Any) -> bool:
    """Give it its state; False if it keeps its own, as a GradScaler does if the saved one was
    disabled (as on CPUs), because that has no state."""
    if isinstance(target, torch.amp.GradScaler) and target.is_enabled() and not state:
        return False
    target.load_state_dict(state)
    return True


class OptimizerSettings:
    """What an optimizer has beside the tensors of its state: settings of its groups, and numbers.

    Raises ConfigError for a parameter that is not the model's.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._parameters = dict(module.named_parameters())
        self._names = {id(each): name for name, each in self._parameters.items()}
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in self._names:
                    raise ConfigError(
                        f"optimizer: a parameter of shape {tuple(parameter.shape)} is not the"
                        " model's; pass as model the module that holds all parameters, after it is"
                        " sharded"
                    )

    def state_dict(self) -> dict[str, Any]:
        values = {
            self._names[id(parameter)]: kept
            for parameter, state in self._optimizer.state.items()
            if (kept := {k: v for k, v in state.items() if not isinstance(v, Tensor)})
        }
        return {"groups": [self._group(each) for each in self._optimizer.param_groups]} | {
            "values": values
        }

    def _group(self, group: dict[str, Any]) -> dict[str, Any]:
        return group | {"params": [self._names[id(each)] for each in group["params"]]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        groups = self._optimizer.param_groups
        if [self._group(each)["params"] for each in groups] != [
            each["params"] for each in state["groups"]
        ]:
            raise ValueError("its groups have other parameters than this optimizer's")
        for group, saved in zip(groups, state["groups"], strict=True):
            for key, value in saved.items():
                if isinstance(value, Tensor) and isinstance(group.get(key), Tensor):
                    group[key].copy_(value)  # a compiled step holds the tensor
                elif key not in ("params", *_IMPLEMENTATION):
                    group[key] = value
        for name, values in state["values"].items():
            self._optimizer.state[self._parameters[name]].update(values)


def encode(value: Any, name: str, tensors: dict[str, Tensor] | None) -> Any:
    """`value` with its tensors moved to `tensors`, by names below `name`, and no tuples or arrays.

    Without `tensors` they stay in it, as copies on the CPU. Nothing in it changes later.
    """
    if isinstance(value, Tensor):
        if tensors is None:
            return value.detach().cpu().clone()
        tensors[f"{OTHERS}{name}"] = value.detach()
        return {_TENSOR: f"{OTHERS}{name}"}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise CheckpointError(f"{name}: an array of Python objects can't be saved")
        content = base64.b64encode(array.tobytes()).decode()
        return {_ARRAY: [array.dtype.str, list(array.shape), content]}
    if type(value) is tuple:
        return {_TUPLE: encode(list(value), name, tensors)}
    if isinstance(value, list):
        return [encode(each, f"{name}.{i}", tensors) for i, each in enumerate(value)]
    if isinstance(value, Mapping):
        encoded = {key: encode(each, f"{name}.{key}", tensors) for key, each in value.items()}
        if type(value) in (dict, OrderedDict):
            return encoded
        return _with_items(value, encoded)
    return copy.copy(value)


def _with_items(value: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A Counter or defaultdict like `value`, with these items (update() of a Counter would add)."""
    kept: Any = copy.copy(value)
    for key, each in items.items():
        kept[key] = each
    return kept


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(each, tensors) for each in value]
    if isinstance(value, Mapping) and type(value) is not dict:
        return _with_items(value, {key: decode(each, tensors) for key, each in value.items()})
    if type(value) is not dict:
        return value
    if value.keys() == {_TENSOR}:
        return tensors[value[_TENSOR]]
    if value.keys() == {_TUPLE}:
        return tuple(decode(value[_TUPLE], tensors))
    if value.keys() == {_ARRAY}:
        dtype, shape, content = value[_ARRAY]
        array = np.frombuffer(base64.b64decode(content), np.dtype(dtype)).reshape(shape)
        return array.copy() if shape else array[()]
    return {key: decode(each, tensors) for key, each in value.items()}


def is_json(value: Any) -> bool:
    """Whether JSON keeps `value` exactly."""
    if type(value) is dict:
        return all(type(key) is str and is_json(each) for key, each in value.items())
    if type(value) is list:
        return all(map(is_json, value))
    return value is None or type(value) in (str, int, float, bool)


def check_loadable(what: str, encoded: Any) -> None:
    """Raise CheckpointError if only code could restore something in `encoded`."""
    if is_json(encoded):
        return
    buffer = io.BytesIO()
    try:
        torch.save(encoded, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception as error:
        why = " ".join(str(error).split()).partition("WeightsUnpickler error:")
        raise CheckpointError(
            f"{what}: its state_dict() has a value that only code could restore; return numbers,"
            f" text, lists, dicts and tensors ({(why[2] or why[0]).strip()[:200]})"
        ) from None


def write(directory: Path, file: str, values: dict[str, Any]) -> None:
    """Write `values` as JSON into `file`, and those that are not JSON into PICKLED_FILE."""
    pickled = {path: each for path, each in _leaves(values) if not is_json(each)}
    plain = {name: each for name, each in values.items() if name not in ("shared", "ranks")}
    plain["shared"] = {k: v for k, v in values["shared"].items() if is_json(v)}
    plain["ranks"] = [{k: v for k, v in rank.items() if is_json(v)} for rank in values["ranks"]]
    if pickled:
        torch.save(pickled, directory / PICKLED_FILE)
    (directory / file).write_text(json.dumps(plain) + "\n")


def read_pickled(directory: Path, description: dict[str, Any]) -> None:
    """Put the values of PICKLED_FILE back into what `write` was given."""
    path = directory / PICKLED_FILE
    if not path.exists():
        return
    for place, value in torch.load(path, weights_only=True, map_location="cpu").items():
        kind, number, name = place.split("/", 2)
        target = description["ranks"][int(number)] if kind == "ranks" else description["shared"]
        target[name] = value


def _leaves(values: dict[str, Any]) -> list[tuple[str, Any]]:
    shared = [(f"shared/0/{name}", each) for name, each in values["shared"].items()]
    ranks = enumerate(values["ranks"])
    return shared + [(f"ranks/{n}/{name}", v) for n, rank in ranks for name, v in rank.items()]

"""`python -m trainyard_trainer.estimate`: the memory of a run's ranks, before it is started.

Reads {recipe, config, strategy, precision, processes, memory} from standard input (JSON), `memory`
the bytes of a GPU or null, and writes what it found. The last line on standard error says what is
wrong with the settings.
"""

import json
import sys
from typing import Any, get_args

from trainyard_trainer.config import check_batch_size, parse_config
from trainyard_trainer.errors import UserError
from trainyard_trainer.registry import find_recipe

# What a process takes on a GPU beside its tensors: the CUDA context, workspaces of cuBLAS, buffers
# of NCCL, and what the allocator can't use. Assumed, not measured.
BESIDE_TENSORS = 2 * 2**30


def estimate(
    recipe: str,
    config: dict[str, Any],
    strategy: Any,
    precision: Any,
    processes: int,
    memory: int | None,
) -> dict[str, Any]:
    """The parts of a rank's peak, and what to change if it doesn't fit. Raises UserError."""
    cls = find_recipe(recipe)
    settings = parse_config(cls.Config, config)
    check_batch_size(settings, processes)

    import torch

    from trainyard_trainer.estimate.advice import advise
    from trainyard_trainer.estimate.fake_run import Setup, peak_memory
    from trainyard_trainer.estimate.tracker import Part

    gpu = None
    if memory is None and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        gpu, memory = found.name, found.total_memory
    # Compiled code can't be followed; it takes no more memory.
    eager = settings.model_copy(update={"compile": False})
    model = cls.outline(eager)
    setup = Setup(eager, strategy, precision, processes)
    peak = peak_memory(model, setup)
    advice = []
    if memory is not None and peak.total() > (limit := memory - BESIDE_TENSORS):
        advice = advise(setup, peak.total(), limit, lambda new: peak_memory(model, new).total())
    return {
        "parts": {part: peak[part] for part in get_args(Part)},
        "micro_batch": setup.micro_batch,
        "compiled": settings.compile,
        "gpu": gpu,
        "memory": memory,
        "beside": BESIDE_TENSORS,
        "advice": [{"change": each.change, "total": each.total} for each in advice],
    }


def main() -> None:
    try:
        print(json.dumps(estimate(**json.load(sys.stdin))))
    except UserError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()

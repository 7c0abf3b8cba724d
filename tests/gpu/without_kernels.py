"""Leaves out only the kernels of torch.compile, which a CPU's compiler takes minutes to make;
preloaded into rank_server.py for small models.
"""

import torch._inductor.compile_fx  # noqa: F401  seconds of every run that compiles

from tests.gpu.setting import SMALL_BACKEND
from trainyard_trainer.distributed import compiler

compiler.BACKEND = SMALL_BACKEND

"""Eager training starts without torch.compile's modules; code that needs them gets them."""

import subprocess
import sys

from tests import patience

PROGRAM = """
import sys, torch
from trainyard_trainer.deferred_dynamo import defer_dynamo
defer_dynamo()
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
model(torch.ones(2, 4)).sum().backward()
optimizer.step()
optimizer.zero_grad()
assert "torch._dynamo.eval_frame" not in sys.modules, "dynamo was imported after all"
assert "sympy" not in sys.modules
import torch._dynamo.config
assert torch._dynamo is sys.modules["torch._dynamo"]
assert torch._dynamo.eval_frame.OptimizedModule
optimizer.step()
print("done")
"""


def test_dynamo_is_imported_only_when_something_asks_for_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
    )
    assert ended.stdout == "done\n", ended.stderr

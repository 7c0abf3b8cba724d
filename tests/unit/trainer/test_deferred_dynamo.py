"""Eager training starts without torch.compile's modules; compiling still finds them."""

import subprocess
import sys

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
compiled = torch.compile(model, backend="eager")
assert torch.equal(compiled(torch.ones(2, 4)), model(torch.ones(2, 4)))
assert "torch._dynamo.eval_frame" in sys.modules
optimizer.step()
print("done")
"""


def test_dynamo_is_imported_only_when_something_compiles() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120
    )
    assert ended.stdout == "done\n", ended.stderr

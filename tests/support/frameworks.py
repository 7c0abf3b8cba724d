"""Scripts of frameworks (scripts/), and what a status shows of them as they are."""

from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent / "scripts"
# Those that report to Kubeflow Trainer by themselves.
REPORTING = ("transformers_trainer.py", "trl_sft.py")
# What the others print once they train.
SILENT = {"ddp.py": "iter ", "accelerate_loop.py": "step ", "lightning_fit.py": "Trainable params"}


def shows_what_it_reports(status: dict[str, Any], script: str) -> bool:
    """Whether the status has what the script reports by itself."""
    if script in REPORTING:
        return {"step", "totalSteps", "loss", "evalLoss", "etaSeconds"} <= set(status)
    return bool(status.get("message") == "progress unknown: no report")


def hanging(status: dict[str, Any]) -> tuple[str, str]:
    """(status, message) of the condition Hanging; empty before the first hang."""
    for condition in status.get("conditions", []):
        if condition["type"] == "Hanging":
            return condition["status"], condition.get("message", "")
    return "", ""

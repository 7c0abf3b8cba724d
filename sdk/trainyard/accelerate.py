"""For Accelerate:

accelerator = Accelerator(log_with=TrainyardTracker())
accelerator.init_trackers("mine", config={"total": steps})
accelerator.log({"loss": loss}, step=step)
"""

from __future__ import annotations

from typing import Any

from accelerate.tracking import (  # type: ignore[import-untyped]
    GeneralTracker,
    on_main_process,
)

from trainyard.run import init


class TrainyardTracker(GeneralTracker):  # type: ignore[misc]
    """Reports what is passed to `accelerator.log`.

    Pass the number of steps to `accelerator.init_trackers("mine", config={"total": steps})`.
    """

    name = "trainyard"
    requires_logging_directory = False

    def __init__(self) -> None:
        super().__init__()
        self.run = init()
        self._total: int | None = None

    @property
    def tracker(self) -> Any:
        return self.run

    @on_main_process  # type: ignore[untyped-decorator]
    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._total = values.get("total")

    @on_main_process  # type: ignore[untyped-decorator]
    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        self.run.report(step, total=self._total, **values)

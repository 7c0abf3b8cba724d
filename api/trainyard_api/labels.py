"""Labels on every object a run owns and on the runs of a study, and annotations of runs."""

from trainyard_api.run import GROUP
from trainyard_api.spec import CONTAINER

__all__ = [
    "AGENT_CONTAINER",
    "ATTEMPT",
    "CELL",
    "CONTAINER",
    "MANAGED_BY",
    "MANAGER",
    "NODE",
    "REPEAT",
    "RETRY",
    "RUN",
    "STUDY",
]

RUN = f"{GROUP}/run"
ATTEMPT = f"{GROUP}/attempt"
NODE = f"{GROUP}/node"
STUDY = f"{GROUP}/study"
CELL = f"{GROUP}/cell"
REPEAT = f"{GROUP}/repeat"
RETRY = f"{GROUP}/retry"  # an annotation: each new value asks a failed run for another attempt
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "trainyard"
AGENT_CONTAINER = "trainyard-agent"  # the init container that brings the agent

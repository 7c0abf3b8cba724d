"""Labels on every object a run owns, and on the runs of a study."""

from trainyard_api.run import GROUP
from trainyard_api.spec import CONTAINER

__all__ = [
    "ATTEMPT",
    "CELL",
    "CONTAINER",
    "MANAGED_BY",
    "MANAGER",
    "NODE",
    "REPEAT",
    "RUN",
    "STUDY",
]

RUN = f"{GROUP}/run"
ATTEMPT = f"{GROUP}/attempt"
NODE = f"{GROUP}/node"
STUDY = f"{GROUP}/study"
CELL = f"{GROUP}/cell"
REPEAT = f"{GROUP}/repeat"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "trainyard"

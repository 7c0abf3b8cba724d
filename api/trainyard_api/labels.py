"""Labels and annotations on every object a run owns."""

from trainyard_api.run import GROUP
from trainyard_api.spec import CONTAINER

__all__ = ["ATTEMPT", "CONTAINER", "MANAGED_BY", "MANAGER", "NODE", "RUN"]

RUN = f"{GROUP}/run"
ATTEMPT = f"{GROUP}/attempt"
NODE = f"{GROUP}/node"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "trainyard"

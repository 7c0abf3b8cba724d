"""Labels and annotations on every object a run owns."""

from trainyard_api.run import GROUP

RUN = f"{GROUP}/run"
ATTEMPT = f"{GROUP}/attempt"
NODE = f"{GROUP}/node"
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "trainyard"
# The container that trains; podTemplate overrides it by this name.
CONTAINER = "trainer"

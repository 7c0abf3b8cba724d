"""The four dashboards, by the name of their file."""

from monitoring.dashboards.fleet import FLEET
from monitoring.dashboards.run import RUN
from monitoring.dashboards.scaling import SCALING
from monitoring.dashboards.serving import SERVING

DASHBOARDS = {"run": RUN, "scaling": SCALING, "fleet": FLEET, "serving": SERVING}

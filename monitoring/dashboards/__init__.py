"""The four dashboards."""

from monitoring.dashboards.fleet import FLEET
from monitoring.dashboards.run import RUN
from monitoring.dashboards.scaling import SCALING
from monitoring.dashboards.serving import SERVING
from monitoring.grafana import Dashboard

DASHBOARDS: tuple[Dashboard, ...] = (RUN, SCALING, FLEET, SERVING)

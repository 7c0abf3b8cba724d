"""Values of charts/operator that several tests render."""

SERVICE_MONITOR = ("metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.labels.release=p")
POD_MONITOR = ("metrics.podMonitor.enabled=true", "metrics.podMonitor.labels.release=p")
RULE = ("metrics.prometheusRule.enabled=true", "metrics.prometheusRule.labels.release=p")
RULES_FILE = ("metrics.rulesConfigMap.enabled=true",)
DASHBOARDS = ("metrics.dashboards.enabled=true",)
MONITORED = (*SERVICE_MONITOR, *POD_MONITOR, *RULE, *RULES_FILE, *DASHBOARDS)

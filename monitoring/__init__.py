"""Prometheus rules and Grafana dashboards, written from the metrics' names by `make monitoring`."""

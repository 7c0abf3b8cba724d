"""Prometheus rules and Grafana dashboards; `make monitoring` writes them into charts/operator."""

"""Alert rules and dashboards for the metrics of services: files for Prometheus and Grafana. Pure."""

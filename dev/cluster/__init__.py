"""A real Kubernetes on this machine, for trying Trainyard and for its end-to-end tests."""

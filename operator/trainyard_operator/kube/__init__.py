"""The Kubernetes executor: what a Plan means on a cluster, and what is observed there."""

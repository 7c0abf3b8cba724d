"""The Kubernetes operator: watches runs and studies, decides what they need, and applies it."""

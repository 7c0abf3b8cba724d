"""TrainingRun -> pods (kube) or processes (local): watch, observe, decide, apply."""

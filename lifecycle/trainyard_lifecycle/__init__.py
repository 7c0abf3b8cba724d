"""What happens to a run: the decisions, without a cluster, a process or a clock."""

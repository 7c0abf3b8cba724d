"""The CPUs that a node of a run asks for: what its processes share."""

from decimal import Decimal

from trainyard_api.run import TrainingRun


def cpus(run: TrainingRun) -> Decimal | None:
    """resourcesPerNode's limit, else its request; None where it names none, or in thousands."""
    resources = run.spec.resources_per_node
    amount = (resources.limits.get("cpu") or resources.requests.get("cpu")) if resources else None
    if amount is None:
        return None
    if amount.endswith("m"):
        return Decimal(amount[:-1]) / 1000
    return Decimal(amount) if amount.replace(".", "", 1).isdecimal() else None

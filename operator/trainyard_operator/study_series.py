"""Series of studies' results, made from what is stored whenever Prometheus asks: none is left."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import Metric as Family
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import ValidationError

from trainyard_api import metrics
from trainyard_api.study import Cost
from trainyard_api.study_status import ScalingCurve
from trainyard_operator.observe import Key
from trainyard_operator.run_series import gauge

_RATES = {"tokens": metrics.STUDY_TOKENS_PER_SECOND, "samples": metrics.STUDY_SAMPLES_PER_SECOND}
_POINT = (*_RATES.values(), metrics.STUDY_SPEEDUP, metrics.STUDY_EFFICIENCY, metrics.STUDY_COST)
_MOST = metrics.STUDY_SPEEDUP.labels[1].at_most


class StudySeries(Collector):
    """Phases and curves of the studies last seen; of more studies than the bound some are left."""

    def __init__(self) -> None:
        self._phases: dict[Key, str] = {}
        self._curves: dict[Key, list[ScalingCurve]] = {}
        self._currency: dict[Key, str] = {}

    def seen(self, key: Key, body: Mapping[str, Any] | None) -> None:
        """A study as last seen; None when it is gone."""
        if body is None:
            self._phases.pop(key, None)
            self._curves.pop(key, None)
            self._currency.pop(key, None)
            return
        status = body.get("status") or {}
        self._phases[key] = str(status.get("phase") or "Pending")
        self._curves[key] = [found for c in status.get("curves") or [] if (found := _curve(c))]
        cost = (body.get("spec") or {}).get("cost") or {}
        self._currency[key] = cost.get("currency") or Cost.model_fields["currency"].default

    def seen_all(self, bodies: Mapping[Key, Mapping[str, Any]]) -> None:
        """Every study there is: what isn't among them is gone."""
        for key in self._phases.keys() - bodies.keys():
            self.seen(key, None)
        for key, body in bodies.items():
            self.seen(key, body)

    def collect(self) -> Iterator[Family]:
        phases = gauge(metrics.STUDIES)
        for phase, count in Counter(self._phases.values()).items():
            phases.add_metric([phase], count)
        yield phases
        families = {metric.name: gauge(metric) for metric in _POINT}
        for key, curves in list(self._curves.items())[:_MOST]:
            for curve in curves:
                self._add(families, key, curve)
        yield from families.values()

    def _add(
        self, families: Mapping[str, GaugeMetricFamily], key: Key, curve: ScalingCurve
    ) -> None:
        rate = _RATES[curve.unit]
        for point in curve.points:
            if point.too_wide:  # a series has no interval: its middle would be taken at its word
                continue
            of = [key.namespace, key.name, curve.label, str(point.processes), point.source]
            families[rate.name].add_metric(of, point.throughput.value)
            families[metrics.STUDY_SPEEDUP.name].add_metric(of, point.speedup)
            families[metrics.STUDY_EFFICIENCY.name].add_metric(of, point.efficiency)
            if point.cost_per_million is not None:
                priced = [*of, curve.unit, self._currency[key]]
                families[metrics.STUDY_COST.name].add_metric(priced, point.cost_per_million)


def _curve(stored: Mapping[str, Any]) -> ScalingCurve | None:
    try:
        return ScalingCurve.model_validate(stored)
    except ValidationError:  # another version of the operator wrote it, and will be overwritten
        return None

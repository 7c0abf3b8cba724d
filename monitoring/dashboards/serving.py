"""Servers: latency, queue, errors, and the model that each pod serves."""

from monitoring import rules as r
from monitoring.grafana import Row, build, columns, stat, table, thresholds, timeseries, variable
from trainyard_api import metrics as m

# The pods of a release of charts/serving, whatever job name the scrape gives them.
_PODS = 'namespace=~"$namespace",pod=~"($app)-[0-9a-z]+-[0-9a-z]{5}"'
_APPS = '{namespace=~"$namespace",app=~"$app"}'
_WINDOW = "[$__rate_interval]"
# Refusals are fast; they would hide the latency of answers.
_ANSWERS = f'{_PODS},code=~"2.."'


def _sum_rate(metric: m.Metric | str, by: str = "") -> str:
    grouping = f" by ({by}) " if by else ""
    return f"sum{grouping}(rate({metric}{{{_PODS}}}{_WINDOW}))"


def _quantile(share: float, metric: m.Metric, selector: str, by: str = "le") -> str:
    buckets = f"sum by ({by}) (rate({metric}_bucket{{{selector}}}{_WINDOW}))"
    return f"histogram_quantile({share}, {buckets})"


def _quantiles(metric: m.Metric, selector: str) -> dict[str, str]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {name: _quantile(share, metric, selector) for name, share in shares.items()}


def _mean(histogram: m.Metric, by: str = "") -> str:
    return f"{_sum_rate(f'{histogram}_sum', by)} / ({_sum_rate(f'{histogram}_count', by)} > 0)"


_NOW = Row(
    "Now",
    (
        stat("Requests", "Per second.", f"sum({r.REQUESTS_RATE}{_APPS})", "reqps").decimals(1),
        stat(
            "Errors",
            "Share of the valid requests to a route that fail with a status of 500 or above; of the"
            " worst route.",
            f"max({r.ERRORS}{_APPS})",
            "percentunit",
        )
        .decimals(1)
        .thresholds(thresholds("green", (0.01, "yellow"), (0.05, "red"))),
        stat(
            "Latency, p95",
            "95% of the answers of a route are complete within this time; of the slowest route.",
            f"max({r.LATENCY}{_APPS})",
            "s",
        ),
        stat("Queued", "Requests waiting for a model.", f"sum({r.QUEUE}{_APPS})").decimals(0),
        stat(
            "Models",
            "Number of different models being served; 2 while a newer model rolls out.",
            f"count(count by (digest) ({m.MODEL_INFO}{{{_PODS}}}))",
        ).decimals(0),
        stat(
            "Refused models",
            "Newer models that were refused in the last six hours.",
            f'sum(increase({m.MODEL_SWAPS}{{{_PODS},result="refused"}}[6h]))',
        )
        .decimals(0)
        .thresholds(thresholds("green", (1, "red"))),
    ),
)
_REQUESTS = Row(
    "Requests",
    (
        timeseries(
            "Requests by route",
            "Per second.",
            {"{{route}}": _sum_rate(m.REQUESTS, "route")},
            "reqps",
            stacked=True,
        ),
        timeseries(
            "Requests by status",
            "Per second. 429: the queue was full; 503: no model was loaded yet.",
            {"{{code}}": _sum_rate(m.REQUESTS, "code")},
            "reqps",
            stacked=True,
        ),
        timeseries(
            "Errors and refusals",
            "By route. Errors: share of the valid requests that fail with a status of 500 or above."
            " Refusals: share of all requests that get a 429.",
            {
                "errors {{app}}{{route}}": f"{r.ERRORS}{_APPS}",
                "refusals {{app}}{{route}}": f"{r.REFUSALS}{_APPS}",
            },
            "percentunit",
        ),
        timeseries(
            "Latency, p95 by route",
            "Time until the last byte of an answer; of a stream, the end of it.",
            {"p95 {{route}}": _quantile(0.95, m.REQUEST_SECONDS, _ANSWERS, "route, le")},
            "s",
        ),
        timeseries(
            "Median latency by route",
            "Time until the last byte of an answer; of a stream, the end of it.",
            {"p50 {{route}}": _quantile(0.5, m.REQUEST_SECONDS, _ANSWERS, "route, le")},
            "s",
        ),
        timeseries(
            "Time to first token",
            "Time from the request to the first generated token.",
            _quantiles(m.FIRST_TOKEN_SECONDS, _PODS),
            "s",
        ),
        timeseries(
            "Queued and in progress",
            "Requests waiting for the model, and all requests being processed.",
            {
                "waiting": f"sum({m.SERVING_QUEUE}{{{_PODS}}})",
                "in progress": f"sum({m.REQUESTS_IN_PROGRESS}{{{_PODS}}})",
            },
        ).decimals(0),
        timeseries(
            "Generated tokens",
            "Per second, by pod.",
            {"{{pod}}": _sum_rate(m.GENERATED_TOKENS, "pod")},
            "short",
        ),
        timeseries(
            "Queued by release",
            "The metric that the autoscaler uses (autoscaling.kind: queue).",
            {"{{app}}": f"{r.QUEUE}{_APPS}"},
        ).decimals(0),
    ),
)
_CLASSIFICATION = Row(
    "Classification",
    (
        timeseries(
            "Batch time by stage",
            "Mean. Stages: queue (wait of the oldest text in the batch), tokenise, compute.",
            {"{{stage}}": _mean(m.STAGE_SECONDS, "stage")},
            "s",
            stacked=True,
        ),
        timeseries("Batch size", "Mean number of texts.", {"texts": _mean(m.BATCH_SIZE)}).decimals(
            1
        ),
        timeseries(
            "Predictions by class",
            "Share of the texts. A sudden shift means that the texts or the model have changed.",
            {
                "{{label}}": f"{_sum_rate(m.PREDICTIONS, 'label')}"
                f" / on () group_left () ({_sum_rate(m.PREDICTIONS)} > 0)"
            },
            "percentunit",
            stacked=True,
        ).max(1),
    ),
)
_MODELS = Row(
    "Models and processes",
    (
        table(
            "Models served",
            "The run, step and digest of the model that each pod serves.",
            f"max by (namespace, pod, run, step, digest) ({m.MODEL_INFO}{{{_PODS}}})",
        ).with_transformation(
            columns(
                {
                    "namespace": "Namespace",
                    "pod": "Pod",
                    "run": "Run",
                    "step": "Step",
                    "digest": "Digest",
                },
                hidden=["Time", "Value"],
            )
        ),
        timeseries(
            "Model updates",
            "Newer models that were loaded, refused or rolled back in the last hour.",
            {"{{result}}": f"sum by (result) (increase({m.MODEL_SWAPS}{{{_PODS}}}[1h]))"},
            stacked=True,
        ),
        timeseries(
            "Memory",
            "Resident memory of each pod's server.",
            {"{{pod}}": f"{m.PROCESS_MEMORY_BYTES}{{{_PODS}}}"},
            "bytes",
        ),
        timeseries(
            "CPU",
            "Cores used by each pod's server.",
            {"{{pod}}": f"rate({m.PROCESS_CPU_SECONDS}{{{_PODS}}}{_WINDOW})"},
        ),
    ),
)

SERVING = build(
    "serving",
    "Trainyard / Serving",
    "Latency, queue, errors and models of the servers installed with charts/serving.",
    (
        variable("namespace", "Namespace", m.SERVING_QUEUE.name, multi=True),
        variable(
            "app", "Release", f'{m.SERVING_QUEUE}{{namespace=~"$namespace"}}', "pod", multi=True
        ).regex("/(.+)-[0-9a-z]+-[0-9a-z]{5}/"),
    ),
    (_NOW, _REQUESTS, _CLASSIFICATION, _MODELS),
)

"""Servers: latency, queue, errors, and which model answers."""

from monitoring import records as r
from monitoring.grafana import Dashboard, Panel, Query, Row, Variable, organised, stat
from trainyard_api import metrics as m

# The pods of a release of charts/serving, whatever the scrape calls its job.
_OF = 'namespace=~"$namespace",pod=~"($app)-[0-9a-z]+-[0-9a-z]{5}"'
_APPS = '{namespace=~"$namespace",app=~"$app"}'
_WINDOW = "[$__rate_interval]"
# Probes, pages and scrapes would hide how long predictions take.
_WORK = f'{_OF},route!~"/health|/ready|/metrics|/docs|/openapi.json|/"'


def _quantiles(metric: m.Metric, selector: str, *by: str) -> tuple[Query, ...]:
    labels = ", ".join((*by, "le"))
    named = "".join(f" {{{{{label}}}}}" for label in by)
    return tuple(
        Query(
            f"histogram_quantile({share},"
            f" sum by ({labels}) (rate({metric}_bucket{{{selector}}}{_WINDOW})))",
            f"{name}{named}",
        )
        for share, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


_NOW = Row(
    "Now",
    (
        stat("Requests", "Per second.", f"sum({r.REQUESTS_RATE}{_APPS})", "reqps", decimals=1),
        stat(
            "Errors",
            "Share of requests that end with a status of 500 or above.",
            f"max({r.ERRORS}{_APPS})",
            "percentunit",
            decimals=1,
            steps=((None, "green"), (0.01, "yellow"), (0.05, "red")),
        ),
        stat(
            "Latency, p95",
            "One request in twenty takes longer to its full answer.",
            f"max({r.LATENCY}{_APPS})",
            "s",
        ),
        stat("Waiting", "Requests waiting for a model.", f"sum({r.QUEUE}{_APPS})", decimals=0),
        stat(
            "Models",
            "Different models that answer: 2 while a newer one rolls out.",
            f"count(count by (digest) ({m.MODEL_INFO}{{{_OF}}}))",
            decimals=0,
        ),
        stat(
            "Refused",
            "Newer models that were refused within six hours.",
            f'sum(increase({m.MODEL_SWAPS}{{{_OF},result="refused"}}[6h]))',
            decimals=0,
            steps=((None, "green"), (1, "red")),
        ),
    ),
)
_REQUESTS = Row(
    "Requests",
    (
        Panel(
            "Requests by route",
            "Per second.",
            (Query(f"sum by (route) (rate({m.REQUESTS}{{{_OF}}}{_WINDOW}))", "{{route}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Requests by status",
            "Per second. 429: the queue was full; 503: no model was there yet.",
            (Query(f"sum by (code) (rate({m.REQUESTS}{{{_OF}}}{_WINDOW}))", "{{code}}"),),
            "reqps",
            stacked=True,
        ),
        Panel(
            "Errors",
            "Share of requests that end with a status of 500 or above.",
            (Query(f"{r.ERRORS}{_APPS}", "{{app}}"),),
            "percentunit",
        ),
        Panel(
            "Latency",
            "Time to the full answer; probes, pages and scrapes left out.",
            _quantiles(m.REQUEST_SECONDS, _WORK),
            "s",
        ),
        Panel(
            "Median latency by route",
            "Time to the full answer.",
            _quantiles(m.REQUEST_SECONDS, _WORK, "route")[:1],
            "s",
        ),
        Panel(
            "Time to the first token",
            "From the request to the first generated token.",
            _quantiles(m.FIRST_TOKEN_SECONDS, _OF),
            "s",
        ),
        Panel(
            "Waiting and in progress",
            "Requests waiting for the model, and all that are being answered.",
            (
                Query(f"sum({m.SERVING_QUEUE}{{{_OF}}})", "waiting"),
                Query(f"sum({m.REQUESTS_IN_PROGRESS}{{{_OF}}})", "in progress"),
            ),
            decimals=0,
        ),
        Panel(
            "Generated tokens",
            "Per second, by pod.",
            (Query(f"sum by (pod) (rate({m.GENERATED_TOKENS}{{{_OF}}}{_WINDOW}))", "{{pod}}"),),
            "short",
        ),
        Panel(
            "Waiting by release",
            "What the autoscaler looks at (autoscaling.kind: queue).",
            (Query(f"{r.QUEUE}{_APPS}", "{{app}}"),),
            decimals=0,
        ),
    ),
)
_CLASSES = Row(
    "Classification",
    (
        Panel(
            "Time of a batch by stage",
            "Mean: queue (its oldest text), tokenise, compute.",
            (
                Query(
                    f"sum by (stage) (rate({m.STAGE_SECONDS}_sum{{{_OF}}}{_WINDOW}))"
                    f" / (sum by (stage) (rate({m.STAGE_SECONDS}_count{{{_OF}}}{_WINDOW})) > 0)",
                    "{{stage}}",
                ),
            ),
            "s",
            stacked=True,
        ),
        Panel(
            "Texts computed together",
            "Mean size of a batch.",
            (
                Query(
                    f"sum(rate({m.BATCH_SIZE}_sum{{{_OF}}}{_WINDOW}))"
                    f" / (sum(rate({m.BATCH_SIZE}_count{{{_OF}}}{_WINDOW})) > 0)",
                    "texts",
                ),
            ),
            decimals=1,
        ),
        Panel(
            "Answers by class",
            "Share of the texts; a sudden shift is news about the texts, or about a newer model.",
            (
                Query(
                    f"sum by (label) (rate({m.PREDICTIONS}{{{_OF}}}{_WINDOW}))"
                    f" / on () group_left () (sum(rate({m.PREDICTIONS}{{{_OF}}}{_WINDOW})) > 0)",
                    "{{label}}",
                ),
            ),
            "percentunit",
            stacked=True,
            most=1,
        ),
    ),
)
_MODELS = Row(
    "Models and processes",
    (
        Panel(
            "Models served",
            "The run, the step and the digest that each pod answers from.",
            (
                Query(
                    f"max by (namespace, pod, run, step, digest) ({m.MODEL_INFO}{{{_OF}}})",
                    instant=True,
                ),
            ),
            kind="table",
            width=24,
            least=None,
            transformations=(
                organised(
                    {
                        "namespace": "Namespace",
                        "pod": "Pod",
                        "run": "Run",
                        "step": "Step",
                        "digest": "Digest",
                    },
                    hidden=("Time", "Value"),
                ),
            ),
        ),
        Panel(
            "Newer models",
            "Loaded, refused, or rolled back by request, within an hour.",
            (Query(f"sum by (result) (increase({m.MODEL_SWAPS}{{{_OF}}}[1h]))", "{{result}}"),),
            stacked=True,
        ),
        Panel(
            "Memory",
            "Resident memory of each pod's server.",
            (Query(f"{m.PROCESS_MEMORY_BYTES}{{{_OF}}}", "{{pod}}"),),
            "bytes",
        ),
        Panel(
            "CPU",
            "Cores that each pod's server uses.",
            (Query(f"rate({m.PROCESS_CPU_SECONDS}{{{_OF}}}{_WINDOW})", "{{pod}}"),),
        ),
    ),
)

SERVING = Dashboard(
    "serving",
    "Trainyard / Serving",
    "Latency, queue, errors and models of the servers that charts/serving installs.",
    (
        Variable("namespace", "namespace", m.SERVING_QUEUE.name, "Namespace", several=True),
        Variable(
            "app",
            "pod",
            f'{m.SERVING_QUEUE}{{namespace=~"$namespace"}}',
            "Release",
            several=True,
            regex="/(.+)-[0-9a-z]+-[0-9a-z]{5}/",
        ),
    ),
    (_NOW, _REQUESTS, _CLASSES, _MODELS),
)

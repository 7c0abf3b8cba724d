"""Metric names of every part, in one place: code, rules, dashboards and docs use these."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """A Prometheus metric: base units, `_total` for counters, as its conventions say."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


# Trainer: served by rank 0 at /metrics. A scrape adds pod and namespace.
STEP = Metric("trainyard_step", "gauge", "Optimizer steps done.", ("run",))
TOTAL_STEPS = Metric("trainyard_total_steps", "gauge", "Optimizer steps asked for.", ("run",))
LOSS = Metric("trainyard_loss", "gauge", "Training loss of the newest logged step.", ("run",))
EVAL_LOSS = Metric("trainyard_eval_loss", "gauge", "Newest evaluation loss.", ("run",))
EVALUATION = Metric(
    "trainyard_evaluation", "gauge", "Newest evaluation, by metric.", ("run", "metric")
)
LEARNING_RATE = Metric("trainyard_learning_rate", "gauge", "Learning rate.", ("run",))
GRAD_NORM = Metric("trainyard_grad_norm", "gauge", "Gradient norm before clipping.", ("run",))
STEP_SECONDS = Metric("trainyard_step_seconds", "histogram", "Time of one step.", ("run",))
RANK_STEP_SECONDS = Metric(
    "trainyard_rank_step_seconds",
    "gauge",
    "A rank's own work in a step, without waiting for the others; mean since the last log line.",
    ("run", "rank"),
)
DATA_WAIT_SECONDS = Metric(
    "trainyard_data_wait_seconds_total", "counter", "Time steps waited for data.", ("run",)
)
TOKENS = Metric("trainyard_tokens_total", "counter", "Tokens trained on, all ranks.", ("run",))
SAMPLES = Metric("trainyard_samples_total", "counter", "Samples trained on, all ranks.", ("run",))
TOKENS_PER_SECOND = Metric(
    "trainyard_tokens_per_second", "gauge", "Tokens per second, all ranks.", ("run",)
)
SAMPLES_PER_SECOND = Metric(
    "trainyard_samples_per_second", "gauge", "Samples per second, all ranks.", ("run",)
)
CHECKPOINT_SECONDS = Metric(
    "trainyard_checkpoint_seconds",
    "histogram",
    "Time of a checkpoint: stage is block (training waits) or write (in the background).",
    ("run", "stage"),
)
CHECKPOINT_STEP = Metric(
    "trainyard_checkpoint_step", "gauge", "Step of the newest complete checkpoint.", ("run",)
)
GPU_MEMORY_BYTES = Metric(
    "trainyard_gpu_memory_bytes", "gauge", "Peak memory allocated on rank 0's GPU.", ("run",)
)
WORLD_SIZE = Metric("trainyard_world_size", "gauge", "Ranks in the process group.", ("run",))
STALLED_SECONDS = Metric(
    "trainyard_stalled_seconds",
    "gauge",
    "Time since the rank that has waited longest made progress.",
    ("run",),
)

# Operator.
RUNS = Metric("trainyard_operator_runs", "gauge", "Training runs by phase.", ("phase",))
RECONCILES = Metric(
    "trainyard_operator_reconciles_total", "counter", "Reconciles by result.", ("result",)
)
RECONCILE_SECONDS = Metric(
    "trainyard_operator_reconcile_seconds", "histogram", "Time of one reconcile."
)
RESTARTS = Metric(
    "trainyard_operator_restarts_total", "counter", "Attempts that failed, by reason.", ("reason",)
)
QUEUE_DEPTH = Metric("trainyard_operator_queue_depth", "gauge", "Runs waiting to be reconciled.")
LEADER = Metric("trainyard_operator_leader", "gauge", "1 on the replica that holds the Lease.")

# Operator: results of studies. `configuration` is the cell without its size, `source` is measured
# or projected. A study's cells bound the number of series.
_POINT = ("namespace", "study", "configuration", "processes", "source")
STUDIES = Metric("trainyard_operator_studies", "gauge", "Scaling studies by phase.", ("phase",))
STUDY_TOKENS_PER_SECOND = Metric(
    "trainyard_study_tokens_per_second", "gauge", "Tokens per second.", _POINT
)
STUDY_SAMPLES_PER_SECOND = Metric(
    "trainyard_study_samples_per_second", "gauge", "Samples per second.", _POINT
)
STUDY_SPEEDUP = Metric(
    "trainyard_study_speedup_ratio", "gauge", "Throughput / that of the smallest size.", _POINT
)
STUDY_EFFICIENCY = Metric(
    "trainyard_study_efficiency_ratio", "gauge", "Throughput per process / the smallest's.", _POINT
)
STUDY_COST = Metric(
    "trainyard_study_cost_per_million",
    "gauge",
    "Cost of a million tokens or samples (unit), in the currency the study names.",
    (*_POINT, "unit", "currency"),
)

# Serving.
REQUESTS = Metric(
    "trainyard_serving_requests_total",
    "counter",
    "Requests by route and status.",
    ("route", "code"),
)
REQUEST_SECONDS = Metric(
    "trainyard_serving_request_seconds", "histogram", "Time to the full answer.", ("route",)
)
FIRST_TOKEN_SECONDS = Metric(
    "trainyard_serving_first_token_seconds", "histogram", "Time to the first generated token."
)
GENERATED_TOKENS = Metric(
    "trainyard_serving_generated_tokens_total", "counter", "Tokens generated."
)
SERVING_QUEUE = Metric("trainyard_serving_queue_depth", "gauge", "Requests waiting for the model.")
MODEL_INFO = Metric(
    "trainyard_serving_model_info", "gauge", "1 for the model served.", ("run", "step", "digest")
)
MODEL_SWAPS = Metric(
    "trainyard_serving_model_swaps_total",
    "counter",
    "Newer models met: loaded, refused, or rolled_back by request.",
    ("result",),
)
BATCH_SIZE = Metric("trainyard_serving_batch_size", "histogram", "Texts computed together.")
STAGE_SECONDS = Metric(
    "trainyard_serving_stage_seconds",
    "histogram",
    "Time of a batch in a stage: queue (its oldest text), tokenise or compute.",
    ("stage",),
)
PREDICTIONS = Metric(
    "trainyard_serving_predictions_total", "counter", "Texts classified, by class.", ("label",)
)

"""Metric names of every part, in one place: code, rules, dashboards and docs use these."""

from dataclasses import dataclass
from typing import Literal

Part = Literal["trainer", "agent", "operator", "serving", "all"]


class Label(str):
    """A label's name, what its values are, and the most of them that one process exports."""

    values: str
    at_most: int

    def __new__(cls, name: str, values: str, at_most: int) -> "Label":
        label = super().__new__(cls, name)
        label.values, label.at_most = values, at_most
        return label


@dataclass(frozen=True)
class Metric:
    """A Prometheus metric: base units, `_total` for counters, as its conventions say."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[Label, ...] = ()

    def __str__(self) -> str:
        """The name, so that queries are written f"rate({TOKENS}[5m])"."""
        return self.name

    @property
    def part(self) -> Part:
        """Whose /metrics has it."""
        if self.name.startswith("process_"):
            return "all"
        if self.name.startswith(("trainyard_operator_", "trainyard_study_")):
            return "operator"
        if self.name.startswith("trainyard_agent_"):
            return "agent"
        return "serving" if self.name.startswith("trainyard_serving_") else "trainer"


_RUN = Label("run", "the run's name", 1)
_METRIC = Label("metric", "evaluation metrics of the recipe; those past the limit are left out", 32)
_RANK = Label("rank", "0 and up; of a larger group the slowest ranks", 256)

# Trainer: served by rank 0 at /metrics. Unknown values are absent. A scrape adds pod and namespace.
RUN_INFO = Metric(
    "trainyard_run_info",
    "gauge",
    "1: what this run is.",
    (
        _RUN,
        Label("recipe", "the run's recipe", 1),
        Label("strategy", "ddp or fsdp", 1),
        Label("precision", "fp32, bf16 or fp16", 1),
    ),
)
ATTEMPT = Metric("trainyard_attempt", "gauge", "Number of the attempt, from 1.", (_RUN,))
STEP = Metric("trainyard_step", "gauge", "Optimizer steps done.", (_RUN,))
TOTAL_STEPS = Metric("trainyard_total_steps", "gauge", "Optimizer steps requested.", (_RUN,))
LOSS = Metric("trainyard_loss", "gauge", "Training loss of the newest logged step.", (_RUN,))
EVAL_LOSS = Metric("trainyard_eval_loss", "gauge", "Newest evaluation loss.", (_RUN,))
EVALUATION = Metric(
    "trainyard_evaluation", "gauge", "Newest evaluation, by metric.", (_RUN, _METRIC)
)
LEARNING_RATE = Metric("trainyard_learning_rate", "gauge", "Learning rate.", (_RUN,))
GRAD_NORM = Metric("trainyard_grad_norm", "gauge", "Gradient norm before clipping.", (_RUN,))
STEP_SECONDS = Metric("trainyard_step_seconds", "histogram", "Time of one step.", (_RUN,))
RANK_STEP_SECONDS = Metric(
    "trainyard_rank_step_seconds",
    "gauge",
    "A rank's own work in a step, without waiting for the others; mean since the last log line.",
    (_RUN, _RANK),
)
PRODUCTIVE_SECONDS = Metric(
    "trainyard_productive_seconds_total",
    "counter",
    "Time in optimizer steps, without those done a second time after a restart.",
    (_RUN,),
)
EVALUATION_SECONDS = Metric(
    "trainyard_evaluation_seconds_total",
    "counter",
    "Time training was paused for evaluation.",
    (_RUN,),
)
DATA_WAIT_SECONDS = Metric(
    "trainyard_data_wait_seconds_total", "counter", "Time steps waited for data.", (_RUN,)
)
TOKENS = Metric("trainyard_tokens_total", "counter", "Tokens trained on, all ranks.", (_RUN,))
SAMPLES = Metric("trainyard_samples_total", "counter", "Samples trained on, all ranks.", (_RUN,))
TOKENS_PER_SECOND = Metric(
    "trainyard_tokens_per_second", "gauge", "Tokens per second, all ranks.", (_RUN,)
)
SAMPLES_PER_SECOND = Metric(
    "trainyard_samples_per_second", "gauge", "Samples per second, all ranks.", (_RUN,)
)
CHECKPOINT_SECONDS = Metric(
    "trainyard_checkpoint_seconds",
    "histogram",
    "Time of a checkpoint: stage is block (training waits) or write (in the background).",
    (_RUN, Label("stage", "block or write", 2)),
)
CHECKPOINT_STEP = Metric(
    "trainyard_checkpoint_step", "gauge", "Step of the newest complete checkpoint.", (_RUN,)
)
CHECKPOINT_TIME = Metric(
    "trainyard_checkpoint_timestamp_seconds",
    "gauge",
    "When the newest complete checkpoint was made, seconds since 1970.",
    (_RUN,),
)
GPU_MEMORY_BYTES = Metric(
    "trainyard_gpu_memory_bytes", "gauge", "Peak memory allocated on rank 0's GPU.", (_RUN,)
)
WORLD_SIZE = Metric("trainyard_world_size", "gauge", "Ranks in the process group.", (_RUN,))
STALLED_SECONDS = Metric(
    "trainyard_stalled_seconds",
    "gauge",
    "Time since the rank that has waited longest made progress.",
    (_RUN,),
)

# Agent: served in every pod of a run.
_OWN_RANK = Label("rank", "the ranks of one node", 64)
AGENT_CPU_SECONDS = Metric(
    "trainyard_agent_rank_cpu_seconds_total",
    "counter",
    "CPU time of a rank and the processes that it has started.",
    (_RUN, _OWN_RANK),
)
AGENT_MEMORY_BYTES = Metric(
    "trainyard_agent_rank_memory_bytes",
    "gauge",
    "Resident memory of a rank and the processes that it has started.",
    (_RUN, _OWN_RANK),
)
AGENT_GPU_UTILIZATION = Metric(
    "trainyard_agent_rank_gpu_utilization_ratio",
    "gauge",
    "Share of time in which a kernel ran on the rank's GPU. Also high while it waits in NCCL.",
    (_RUN, _OWN_RANK),
)
AGENT_GPU_MEMORY_BYTES = Metric(
    "trainyard_agent_rank_gpu_memory_bytes",
    "gauge",
    "Memory in use on the rank's GPU.",
    (_RUN, _OWN_RANK),
)
AGENT_RECEIVED_BYTES = Metric(
    "trainyard_agent_network_receive_bytes_total",
    "counter",
    "Bytes that the pod has received.",
    (_RUN,),
)
AGENT_SENT_BYTES = Metric(
    "trainyard_agent_network_transmit_bytes_total",
    "counter",
    "Bytes that the pod has sent.",
    (_RUN,),
)

# Operator: served by every replica; only the leader has runs. Series of single runs are computed
# from the stored objects, and end when the run is deleted.
_NAMESPACE = Label("namespace", "of the runs below", 5000)
_OF_RUNS = Label("run", "unfinished runs, and those that ended in the last 15 minutes", 5000)
_PHASE = Label("phase", "TrainingRun's phases", 7)
_REASON = Label("reason", "why attempts fail, as docs/start/concepts.md lists them", 32)
RUNS = Metric("trainyard_operator_runs", "gauge", "Training runs by phase.", (_PHASE,))
RUN_PHASE = Metric(
    "trainyard_operator_run_phase",
    "gauge",
    "1 for the phase that a run is in.",
    (_NAMESPACE, _OF_RUNS, _PHASE),
)
RUN_WAITING_SECONDS = Metric(
    "trainyard_operator_run_waiting_seconds",
    "gauge",
    "Time that a Pending run has waited for its pods; queue is spec.queue.name, if set.",
    (_NAMESPACE, _OF_RUNS, Label("queue", "spec.queue.name", 5000)),
)
RUN_GPUS = Metric(
    "trainyard_operator_run_gpus", "gauge", "GPUs that a run requests.", (_NAMESPACE, _OF_RUNS)
)
RUN_ACTIVE_SECONDS = Metric(
    "trainyard_operator_run_active_seconds_total",
    "counter",
    "Wall time of a run since it began, without suspensions.",
    (_NAMESPACE, _OF_RUNS),
)
RUN_RESTARTS = Metric(
    "trainyard_operator_run_restarts_total",
    "counter",
    "Failed attempts of a run that were retried.",
    (_NAMESPACE, _OF_RUNS),
)
RUN_FAILED_ATTEMPTS = Metric(
    "trainyard_operator_run_failed_attempts",
    "gauge",
    "Failed attempts among a run's newest ten, by reason.",
    (_NAMESPACE, _OF_RUNS, _REASON),
)
RUN_STUDY = Metric(
    "trainyard_operator_run_study",
    "gauge",
    "1 for a run that is labelled trainyard.dev/study: compare it with that study's results.",
    (_NAMESPACE, _OF_RUNS, Label("study", "the label's values", 5000)),
)
RECONCILES = Metric(
    "trainyard_operator_reconciles_total",
    "counter",
    "Reconciles by result.",
    (Label("result", "ok, gone, conflict, invalid, rejected or error", 6),),
)
RECONCILE_SECONDS = Metric(
    "trainyard_operator_reconcile_seconds", "histogram", "Time of one reconcile."
)
RESTARTS = Metric(
    "trainyard_operator_restarts_total", "counter", "Attempts that failed, by reason.", (_REASON,)
)
QUEUE_DEPTH = Metric(
    "trainyard_operator_queue_depth", "gauge", "Runs and studies waiting to be reconciled."
)
FAILING = Metric(
    "trainyard_operator_failing_runs",
    "gauge",
    "Runs and studies whose newest reconcile has failed.",
)
LEADER = Metric("trainyard_operator_leader", "gauge", "1 on the replica that holds the Lease.")

# Operator: results of studies. `configuration` is the cell without its size, `source` is measured
# or projected. A study's cells bound the number of series.
_POINT = (
    Label("namespace", "of the studies below", 1000),
    Label("study", "ScalingStudies", 1000),
    Label("configuration", "the values of the study's matrix, sizes left out", 1000),
    Label("processes", "sizes measured and projected to", 1000),
    Label("source", "measured or projected", 2),
)
STUDIES = Metric(
    "trainyard_operator_studies",
    "gauge",
    "Scaling studies by phase.",
    (Label("phase", "ScalingStudy's phases", 5),),
)
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
    (
        *_POINT,
        Label("unit", "tokens or samples", 2),
        Label("currency", "three letters, as the studies name them", 200),
    ),
)

# Serving.
_REQUEST = (
    Label("route", "the app's routes; other paths are other", 16),
    Label("code", "HTTP's statuses", 64),
)
REQUESTS = Metric(
    "trainyard_serving_requests_total",
    "counter",
    "Requests by route and status, without /health, /ready and /metrics.",
    _REQUEST,
)
REQUEST_SECONDS = Metric(
    "trainyard_serving_request_seconds",
    "histogram",
    "Time until the last byte of the answer, of a stream the end of it. The same requests.",
    _REQUEST,
)
REQUESTS_IN_PROGRESS = Metric(
    "trainyard_serving_requests_in_progress",
    "gauge",
    "Requests being answered or waiting. The same requests.",
)
FIRST_TOKEN_SECONDS = Metric(
    "trainyard_serving_first_token_seconds",
    "histogram",
    "Time until the first generated token, with the wait in the queue. From SGLang: of streams.",
)
GENERATED_TOKENS = Metric(
    "trainyard_serving_generated_tokens_total", "counter", "Tokens generated."
)
SERVING_QUEUE = Metric("trainyard_serving_queue_depth", "gauge", "Requests waiting for the model.")
SERVING_READY = Metric(
    "trainyard_serving_ready",
    "gauge",
    "1 while there is a model that answers, 0 while there is none.",
)
MODEL_INFO = Metric(
    "trainyard_serving_model_info",
    "gauge",
    "1 for the model served.",
    (
        Label("run", "the run that trained it", 1),
        Label("step", "the step it was saved at", 1),
        Label("digest", "its manifest's sha256", 1),
    ),
)
MODEL_SWAPS = Metric(
    "trainyard_serving_model_swaps_total",
    "counter",
    "Newer models found: loaded, refused, or rolled_back by request.",
    (Label("result", "loaded, refused or rolled_back", 3),),
)
BATCH_SIZE = Metric("trainyard_serving_batch_size", "histogram", "Texts computed together.")
STAGE_SECONDS = Metric(
    "trainyard_serving_stage_seconds",
    "histogram",
    "Time of a batch in a stage: queue (its oldest text), tokenise or compute.",
    (Label("stage", "queue, tokenise or compute", 3),),
)
PREDICTIONS = Metric(
    "trainyard_serving_predictions_total",
    "counter",
    "Texts classified, by class.",
    (Label("label", "the model's classes; those past the limit are other", 101),),
)

# Every part: of its process, as Prometheus' client libraries name them (on Linux).
PROCESS_MEMORY_BYTES = Metric(
    "process_resident_memory_bytes", "gauge", "Resident memory of the process."
)
PROCESS_VIRTUAL_MEMORY_BYTES = Metric(
    "process_virtual_memory_bytes", "gauge", "Virtual memory of the process."
)
PROCESS_CPU_SECONDS = Metric("process_cpu_seconds_total", "counter", "CPU time of the process.")
PROCESS_START_TIME = Metric(
    "process_start_time_seconds", "gauge", "When the process began, seconds since 1970."
)
PROCESS_OPEN_FDS = Metric("process_open_fds", "gauge", "Open file descriptors.")
PROCESS_MAX_FDS = Metric("process_max_fds", "gauge", "Most file descriptors it may open.")

ALL = tuple(value for value in vars().values() if isinstance(value, Metric))

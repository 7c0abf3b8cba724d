"""One run, or several for comparison: loss, throughput, checkpoints, faults and resources."""

from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.timeseries import Panel as TimeSeries
from grafana_foundation_sdk.models.common import BigValueTextMode

from monitoring import rules as r
from monitoring.grafana import Row, build, stat, thresholds, timeseries, variable
from trainyard_api import metrics as m

_RUNS = '{namespace=~"$namespace",run=~"$run"}'
_PODS = '{namespace=~"$namespace",pod=~"($run)-[0-9]+-[0-9]+"}'
_WINDOW = "[$__rate_interval]"


def _max(metric: m.Metric | r.Record, by: str = "") -> str:
    labels = ", ".join(("namespace", "run", *by.split()))
    return f"max by ({labels}) ({metric}{_RUNS})"


def _rate(metric: m.Metric | str) -> str:
    return f"sum by (namespace, run) (rate({metric}{_RUNS}{_WINDOW}))"


def _stat(title: str, description: str, expr: str, unit: str = "none") -> Stat:
    return stat(title, description, expr, unit, legend="{{run}}").span(3)


def _line(title: str, description: str, expr: str, unit: str = "none") -> TimeSeries:
    return timeseries(title, description, {"{{run}}": expr}, unit)


def _of_pod(metric: m.Metric) -> str:
    """The rate of a counter that each pod of a run exports."""
    return f"sum by (namespace, run, pod) (rate({metric}{_RUNS}{_WINDOW}))"


def _of_process(series: m.Metric | str) -> str:
    """A series of rank 0's process, which has no label for the run."""
    joined = f"{series} * on (job, instance) group_left (run) {m.RUN_INFO}{_RUNS}"
    return f"max by (namespace, run) ({joined})"


_STEPS, _STEP_TIME = f"{m.STEP_SECONDS}_count", f"{m.STEP_SECONDS}_sum"
_BUCKETS = f"sum by (namespace, run, le) (rate({m.STEP_SECONDS}_bucket{_RUNS}{_WINDOW}))"
_BLOCKED = f'{m.CHECKPOINT_SECONDS}_sum{{namespace=~"$namespace",run=~"$run",stage="block"}}'

_NOW = Row(
    "Now",
    (
        stat(
            "Phase",
            "The phase in the run's status, exported by the operator.",
            f"{_max(m.RUN_PHASE, 'phase')} == 1",
            legend="{{run}} {{phase}}",
        )
        .span(3)
        .text_mode(BigValueTextMode.NAME),
        _stat(
            "Progress",
            "Completed optimizer steps / total steps.",
            f"{_max(m.STEP)} / {_max(m.TOTAL_STEPS)}",
            "percentunit",
        ),
        _stat(
            "Time remaining",
            "Remaining steps / steps per second over the last minutes.",
            f"({_max(m.TOTAL_STEPS)} - {_max(m.STEP)}) / ({_rate(_STEPS)} > 0)",
            "s",
        ).decimals(0),
        _stat("Loss", "Training loss of the last logged step.", _max(m.LOSS)).decimals(4),
        _stat("Ranks", "Processes in the process group.", _max(m.WORLD_SIZE)),
        _stat(
            "Goodput",
            "Share of the last five minutes spent in optimizer steps that advance the run.",
            _max(r.GOODPUT),
            "percentunit",
        )
        .decimals(0)
        .thresholds(thresholds("red", (0.5, "yellow"), (0.8, "green"))),
        _stat("Restarts", "Failed attempts that were retried.", _max(m.RUN_RESTARTS)).thresholds(
            thresholds("green", (1, "yellow"), (5, "red"))
        ),
        _stat(
            "Checkpoint age",
            "Age of the newest complete checkpoint: the work that a failure now would lose.",
            _max(r.CHECKPOINT_AGE),
            "s",
        ).thresholds(thresholds("green", (1800, "yellow"), (3600, "red"))),
    ),
)
_TRAINING = Row(
    "Training",
    (
        timeseries(
            "Loss",
            "Training loss of the last logged step, and loss on the held-out samples.",
            {"{{run}}": _max(m.LOSS), "{{run}} held out": _max(m.EVAL_LOSS)},
            from_zero=False,
        ).span(12),
        timeseries(
            "Evaluation",
            "All metrics of the last evaluation.",
            {"{{run}} {{metric}}": _max(m.EVALUATION, "metric")},
            from_zero=False,
        ).span(12),
        _line("Learning rate", "At the last logged step.", _max(m.LEARNING_RATE), "sci"),
        _line(
            "Gradient norm",
            "Before clipping. Spikes often precede a diverging loss.",
            _max(m.GRAD_NORM),
        ),
        _line("Step", "Completed optimizer steps.", _max(m.STEP), "locale"),
    ),
)
_THROUGHPUT = Row(
    "Throughput",
    (
        timeseries(
            "Tokens per second",
            "All ranks together. steps: during optimizer steps only; wall: including evaluation,"
            " checkpoints and waiting.",
            {"{{run}} steps": _max(m.TOKENS_PER_SECOND), "{{run}} wall": _max(r.TOKENS_RATE)},
            "short",
        ),
        timeseries(
            "Samples per second",
            "All ranks together, as for tokens. Recipes without tokens export samples only.",
            {"{{run}} steps": _max(m.SAMPLES_PER_SECOND), "{{run}} wall": _max(r.SAMPLES_RATE)},
            "short",
        ),
        timeseries(
            "Step time",
            "Median and 99th percentile of the optimizer steps, estimated from a histogram.",
            {
                "{{run}} p50": f"histogram_quantile(0.5, {_BUCKETS})",
                "{{run}} p99": f"histogram_quantile(0.99, {_BUCKETS})",
            },
            "s",
        ),
        timeseries(
            "Step time by rank",
            "Time that each rank works in a step, without waiting for other ranks. A line above the"
            " others is a straggler. With more than 256 ranks, only the slowest are exported.",
            {"{{run}} rank {{rank}}": _max(m.RANK_STEP_SECONDS, "rank")},
            "s",
        ).span(12),
        timeseries(
            "Time breakdown",
            "Shares of wall time: steps that advance the run, steps repeated after a restart,"
            " evaluation, and checkpoints that block training. The rest is startup and waiting.",
            {
                "{{run}} productive": _rate(m.PRODUCTIVE_SECONDS),
                "{{run}} repeated": f"{_rate(_STEP_TIME)} - {_rate(m.PRODUCTIVE_SECONDS)}",
                "{{run}} evaluation": _rate(m.EVALUATION_SECONDS),
                "{{run}} checkpoint": f"sum by (namespace, run) (rate({_BLOCKED}{_WINDOW}))",
            },
            "percentunit",
            stacked=True,
        ).span(12),
        _line(
            "Data wait",
            "Share of step time that rank 0 spends waiting for data.",
            f"{_rate(m.DATA_WAIT_SECONDS)} / ({_rate(_STEP_TIME)} > 0)",
            "percentunit",
        ),
        timeseries(
            "Throughput against the study",
            "For runs labeled trainyard.dev/study: throughput / what the study measured or"
            " projected for the same number of processes, and efficiency per process.",
            {"{{run}} throughput": _max(r.STUDY_RATIO), "{{run}} efficiency": _max(r.EFFICIENCY)},
            "percentunit",
        ),
        _line(
            "Goodput",
            "Productive time / wall time over the last five minutes.",
            _max(r.GOODPUT),
            "percentunit",
        ).max(1),
    ),
)
_CHECKPOINTS = Row(
    "Checkpoints and faults",
    (
        _line(
            "Checkpoint age",
            "Age of the newest complete checkpoint: the work that a failure now would lose.",
            _max(r.CHECKPOINT_AGE),
            "s",
        ),
        timeseries(
            "Checkpoint step",
            "The step from which a new attempt would resume, and the current step.",
            {"{{run}} saved": _max(m.CHECKPOINT_STEP), "{{run}} done": _max(m.STEP)},
            "locale",
        ),
        timeseries(
            "Checkpoint duration",
            "Mean. block: training waits; write: in the background.",
            {
                "{{run}} {{stage}}": "sum by (namespace, run, stage)"
                f" ({m.CHECKPOINT_SECONDS}_sum{_RUNS})"
                f" / (sum by (namespace, run, stage) ({m.CHECKPOINT_SECONDS}_count{_RUNS}) > 0)"
            },
            "s",
        ),
        _line("Attempt", "Number of the current attempt.", _max(m.ATTEMPT)).decimals(0),
        timeseries(
            "Failed attempts by reason",
            "Among the last ten attempts.",
            {"{{run}} {{reason}}": _max(m.RUN_FAILED_ATTEMPTS, "reason")},
        ).decimals(0),
        _line(
            "Time without progress",
            "Of the rank that last made progress the longest time ago.",
            _max(m.STALLED_SECONDS),
            "s",
        ),
    ),
)
_PROCESS = Row(
    "Process of rank 0",
    (
        _line(
            "Memory",
            "Resident memory of the process.",
            _of_process(m.PROCESS_MEMORY_BYTES),
            "bytes",
        ).span(12),
        _line(
            "CPU",
            "Cores used by the process.",
            _of_process(f"rate({m.PROCESS_CPU_SECONDS}{_WINDOW})"),
        ).span(12),
    ),
)
_RANKS = Row(
    "Ranks (agent)",
    (
        timeseries(
            "CPU by rank",
            "Cores that each rank and the processes that it has started use.",
            {
                "{{run}} rank {{rank}}": "max by (namespace, run, rank)"
                f" (rate({m.AGENT_CPU_SECONDS}{_RUNS}{_WINDOW}))"
            },
        ),
        timeseries(
            "Memory by rank",
            "Resident memory of each rank and the processes that it has started.",
            {"{{run}} rank {{rank}}": _max(m.AGENT_MEMORY_BYTES, "rank")},
            "bytes",
        ),
        timeseries(
            "Network by pod",
            "Bytes per second received and sent.",
            {
                "{{pod}} received": _of_pod(m.AGENT_RECEIVED_BYTES),
                "{{pod}} sent": _of_pod(m.AGENT_SENT_BYTES),
            },
            "Bps",
        ),
        timeseries(
            "GPU utilization by rank",
            "Share of time in which a kernel was running. Also high while ranks wait in NCCL.",
            {"{{run}} rank {{rank}}": _max(m.AGENT_GPU_UTILIZATION, "rank")},
            "percentunit",
        )
        .max(1)
        .span(12),
        timeseries(
            "GPU memory by rank",
            "Memory in use on the GPU of each rank.",
            {"{{run}} rank {{rank}}": _max(m.AGENT_GPU_MEMORY_BYTES, "rank")},
            "bytes",
        ).span(12),
    ),
    collapsed=True,
)


def _gpu(function: str, metric: str) -> str:
    """A metric of NVIDIA's DCGM exporter, by GPU.

    The exporter must map GPUs to pods (its Kubernetes mode), and its labels `namespace` and `pod`
    must be kept by the scrape (honorLabels).
    """
    return f"{function} by (namespace, pod, gpu) (DCGM_FI_{metric}{_PODS})"


def _gpu_line(title: str, description: str, expr: str, unit: str = "none") -> TimeSeries:
    return timeseries(title, description, {"{{pod}} {{gpu}}": expr}, unit)


_GPUS = Row(
    "GPUs (DCGM exporter)",
    (
        _gpu_line(
            "GPU utilization",
            "Share of time in which a kernel was running. Also high while ranks wait in NCCL.",
            _gpu("avg", "DEV_GPU_UTIL"),
            "percent",
        ).max(100),
        _gpu_line(
            "Tensor core activity",
            "Share of cycles in which the tensor cores were active: an upper bound for MFU.",
            _gpu("avg", "PROF_PIPE_TENSOR_ACTIVE"),
            "percentunit",
        ).max(1),
        timeseries(
            "GPU memory",
            "Memory in use on each GPU, and PyTorch's peak allocation on rank 0's GPU.",
            {
                "{{pod}} {{gpu}}": f"1048576 * {_gpu('max', 'DEV_FB_USED')}",  # from MiB
                "{{run}} allocated": _max(m.GPU_MEMORY_BYTES),
            },
            "bytes",
        ),
        _gpu_line("Power", "Power draw of each GPU.", _gpu("max", "DEV_POWER_USAGE"), "watt"),
        timeseries(
            "Temperature",
            "Of each GPU. A GPU that overheats slows down, and all ranks with it.",
            {"{{pod}} {{gpu}}": _gpu("max", "DEV_GPU_TEMP")},
            "celsius",
            from_zero=False,
        ),
        _gpu_line(
            "XID errors",
            "Code of the driver's last error; 0 means none.",
            _gpu("max", "DEV_XID_ERRORS"),
        ).decimals(0),
    ),
    collapsed=True,
)

# Every run has one of them: the agent knows what a script uses that reports nothing.
_OF_EVERY_RUN = f'__name__=~"{m.STEP}|{m.AGENT_MEMORY_BYTES}"'

RUN = build(
    "run",
    "Trainyard / Run",
    "Loss, throughput, step time by rank, checkpoints, faults and memory of training runs.",
    (
        variable("namespace", "Namespace", f"{{{_OF_EVERY_RUN}}}", multi=True),
        variable("run", "Run", f'{{{_OF_EVERY_RUN},namespace=~"$namespace"}}', multi=True),
    ),
    (_NOW, _TRAINING, _THROUGHPUT, _CHECKPOINTS, _PROCESS, _RANKS, _GPUS),
)

"""One run, or several beside each other: how well it learns, how fast, what went wrong."""

from monitoring import gpu
from monitoring import records as r
from monitoring.grafana import Dashboard, Panel, Query, Row, Steps, Variable, stat
from monitoring.rules import Record
from trainyard_api import metrics as m

_OF = '{namespace=~"$namespace",run=~"$run"}'
_PODS = '{namespace=~"$namespace",pod=~"($run)-[0-9]+-[0-9]+"}'
_BY = "by (namespace, run)"
_WINDOW = "[$__rate_interval]"


def _max(metric: m.Metric | Record) -> str:
    return f"max {_BY} ({metric}{_OF})"


def _rate(metric: str | m.Metric) -> str:
    return f"sum {_BY} (rate({metric}{_OF}{_WINDOW}))"


def _one(expr: str, legend: str = "{{run}}") -> tuple[Query, ...]:
    return (Query(expr, legend),)


def _stat(
    title: str,
    description: str,
    expr: str,
    unit: str = "none",
    decimals: int | None = None,
    steps: Steps = ((None, "green"),),
) -> Panel:
    return stat(
        title,
        description,
        expr,
        unit,
        legend="{{run}}",
        width=3,
        decimals=decimals,
        steps=steps,
    )


def _process(metric: m.Metric | str) -> str:
    """A series of the process of rank 0, which doesn't name the run."""
    return f"{metric} * on (job, instance) group_left (run) {m.RUN_INFO}{_OF}"


_STEPS = f"{m.STEP_SECONDS}_count"
_STEP_TIME = f"{m.STEP_SECONDS}_sum"
_BUCKETS = f"sum by (namespace, run, le) (rate({m.STEP_SECONDS}_bucket{_OF}{_WINDOW}))"

_NOW = Row(
    "Now",
    (
        Panel(
            "Phase",
            "Where the run is, as its status says (from the operator).",
            _one(f"max by (namespace, run, phase) ({m.RUN_PHASE}{_OF}) == 1", "{{run}} {{phase}}"),
            kind="stat",
            width=3,
            height=4,
            least=None,
            options={"textMode": "name"},
        ),
        _stat(
            "Progress",
            "Optimizer steps done / asked for.",
            f"{_max(m.STEP)} / {_max(m.TOTAL_STEPS)}",
            "percentunit",
        ),
        _stat(
            "Time left",
            "Steps left / steps per second of the last minutes.",
            f"({_max(m.TOTAL_STEPS)} - {_max(m.STEP)}) / ({_rate(_STEPS)} > 0)",
            "s",
            decimals=0,
        ),
        _stat("Loss", "Training loss of the newest logged step.", _max(m.LOSS), "none", decimals=4),
        _stat(
            "Ranks",
            "Processes in the group.",
            _max(m.WORLD_SIZE),
            "none",
        ),
        _stat(
            "Goodput",
            "Share of the last five minutes in steps that bring the run further.",
            _max(r.GOODPUT),
            "percentunit",
            decimals=0,
            steps=((None, "red"), (0.5, "yellow"), (0.8, "green")),
        ),
        _stat(
            "Restarts",
            "Failed attempts that were tried again.",
            _max(m.RUN_RESTARTS),
            "none",
            steps=((None, "green"), (1, "yellow"), (5, "red")),
        ),
        _stat(
            "At stake",
            "Age of the newest complete checkpoint: what a fault now would cost.",
            _max(r.CHECKPOINT_AGE),
            "s",
            steps=((None, "green"), (1800, "yellow"), (3600, "red")),
        ),
    ),
)
_LEARNING = Row(
    "Learning",
    (
        Panel(
            "Loss",
            "Training loss of the newest logged step, and of the held-out samples.",
            (
                Query(_max(m.LOSS), "{{run}}"),
                Query(_max(m.EVAL_LOSS), "{{run}} held out"),
            ),
            width=12,
            least=None,
        ),
        Panel(
            "Evaluation",
            "Every metric of the newest evaluation.",
            _one(f"max by (namespace, run, metric) ({m.EVALUATION}{_OF})", "{{run}} {{metric}}"),
            width=12,
            least=None,
        ),
        Panel("Learning rate", "Of the newest logged step.", _one(_max(m.LEARNING_RATE)), "sci"),
        Panel(
            "Gradient norm",
            "Before clipping; peaks come before a loss that diverges.",
            _one(_max(m.GRAD_NORM)),
        ),
        Panel("Step", "Optimizer steps done.", _one(_max(m.STEP)), "locale"),
    ),
)
_SPEED = Row(
    "Speed",
    (
        Panel(
            "Tokens per second",
            "All ranks. Steps: of the steps alone. Wall: evaluation, checkpoints and waiting"
            " included.",
            (
                Query(_max(m.TOKENS_PER_SECOND), "{{run}} steps"),
                Query(_max(r.TOKENS_RATE), "{{run}} wall"),
            ),
            "short",
        ),
        Panel(
            "Samples per second",
            "As tokens per second; recipes without tokens have these only.",
            (
                Query(_max(m.SAMPLES_PER_SECOND), "{{run}} steps"),
                Query(_max(r.SAMPLES_RATE), "{{run}} wall"),
            ),
            "short",
        ),
        Panel(
            "Step time",
            "Median and 99th centile of the optimizer steps, from a histogram.",
            (
                Query(f"histogram_quantile(0.5, {_BUCKETS})", "{{run}} p50"),
                Query(f"histogram_quantile(0.99, {_BUCKETS})", "{{run}} p99"),
            ),
            "s",
        ),
        Panel(
            "Step time by rank",
            "A rank's own work in a step, without waiting for the others: a line above the rest is"
            " a straggler. Of more than 256 ranks the slowest.",
            _one(
                f"max by (namespace, run, rank) ({m.RANK_STEP_SECONDS}{_OF})",
                "{{run}} rank {{rank}}",
            ),
            "s",
            width=12,
        ),
        Panel(
            "Where the time goes",
            "Shares of the wall time: steps that bring the run further, steps done again after a"
            " restart, evaluation, and checkpoints while training stands. The rest to 1 is start-up"
            " and waiting.",
            (
                Query(_rate(m.PRODUCTIVE_SECONDS), "{{run}} productive"),
                Query(f"{_rate(_STEP_TIME)} - {_rate(m.PRODUCTIVE_SECONDS)}", "{{run}} repeated"),
                Query(_rate(m.EVALUATION_SECONDS), "{{run}} evaluation"),
                Query(
                    f"sum {_BY} (rate({m.CHECKPOINT_SECONDS}_sum"
                    f'{{namespace=~"$namespace",run=~"$run",stage="block"}}{_WINDOW}))',
                    "{{run}} checkpoint",
                ),
            ),
            "percentunit",
            width=12,
            stacked=True,
        ),
        Panel(
            "Data wait",
            "Share of the steps' time that rank 0 waits for its data.",
            _one(f"{_rate(m.DATA_WAIT_SECONDS)} / ({_rate(_STEP_TIME)} > 0)"),
            "percentunit",
        ),
        Panel(
            "Throughput against the study",
            "Of a run labelled trainyard.dev/study: its throughput / what the study found, or"
            " projected, for as many processes; and its efficiency per process.",
            (
                Query(_max(r.OF_STUDY), "{{run}} of the study's"),
                Query(_max(r.EFFICIENCY), "{{run}} efficiency"),
            ),
            "percentunit",
        ),
        Panel(
            "Goodput",
            "Productive time / wall time of the last five minutes.",
            _one(_max(r.GOODPUT)),
            "percentunit",
            most=1,
        ),
    ),
)
_FAULTS = Row(
    "Checkpoints and faults",
    (
        Panel(
            "Age of the newest checkpoint",
            "What a fault now would cost.",
            _one(_max(r.CHECKPOINT_AGE)),
            "s",
        ),
        Panel(
            "Step of the newest checkpoint",
            "The step an attempt would go on from, beside the step the run is at.",
            (
                Query(_max(m.CHECKPOINT_STEP), "{{run}} saved"),
                Query(_max(m.STEP), "{{run}} done"),
            ),
            "locale",
        ),
        Panel(
            "Time of a checkpoint",
            "Mean: block is what training waits for, write happens in the background.",
            _one(
                f"sum by (namespace, run, stage) ({m.CHECKPOINT_SECONDS}_sum{_OF})"
                f" / (sum by (namespace, run, stage) ({m.CHECKPOINT_SECONDS}_count{_OF}) > 0)",
                "{{run}} {{stage}}",
            ),
            "s",
        ),
        Panel("Attempt", "Number of the attempt that runs.", _one(_max(m.ATTEMPT)), decimals=0),
        Panel(
            "Failed attempts by reason",
            "Among the newest ten attempts.",
            _one(
                f"max by (namespace, run, reason) ({m.RUN_FAILED_ATTEMPTS}{_OF})",
                "{{run}} {{reason}}",
            ),
            decimals=0,
        ),
        Panel(
            "Without progress",
            "Time since the rank that has waited longest made progress.",
            _one(_max(m.STALLED_SECONDS)),
            "s",
        ),
    ),
)
_MACHINE = Row(
    "Process of rank 0",
    (
        Panel(
            "Memory",
            "Resident memory of the process.",
            _one(f"max {_BY} ({_process(m.PROCESS_MEMORY_BYTES)})"),
            "bytes",
            width=12,
        ),
        Panel(
            "CPU",
            "Cores that the process uses.",
            _one(f"max {_BY} ({_process(f'rate({m.PROCESS_CPU_SECONDS}{_WINDOW})')})"),
            "none",
            width=12,
        ),
    ),
)
_GPUS = Row(
    "GPUs (DCGM exporter)",
    (
        Panel(
            "GPU utilisation",
            "Share of time in which a kernel ran; high also while ranks wait for each other.",
            _one(f"avg by (namespace, pod, gpu) ({gpu.UTILISATION}{_PODS})", "{{pod}} {{gpu}}"),
            "percent",
            most=100,
        ),
        Panel(
            "Tensor cores active",
            "Share of cycles in which the tensor cores worked: what MFU is made of.",
            _one(f"avg by (namespace, pod, gpu) ({gpu.TENSOR_ACTIVE}{_PODS})", "{{pod}} {{gpu}}"),
            "percentunit",
            most=1,
        ),
        Panel(
            "GPU memory",
            "In use on each GPU, and the most that PyTorch has allocated on rank 0's.",
            (
                Query(
                    f"1048576 * max by (namespace, pod, gpu) ({gpu.MEMORY_USED}{_PODS})",
                    "{{pod}} {{gpu}}",
                ),
                Query(_max(m.GPU_MEMORY_BYTES), "{{run}} allocated"),
            ),
            "bytes",
        ),
        Panel(
            "Power",
            "Of each GPU.",
            _one(f"max by (namespace, pod, gpu) ({gpu.POWER}{_PODS})", "{{pod}} {{gpu}}"),
            "watt",
        ),
        Panel(
            "Temperature",
            "Of each GPU; it slows down when it is too hot, and with it every rank.",
            _one(f"max by (namespace, pod, gpu) ({gpu.TEMPERATURE}{_PODS})", "{{pod}} {{gpu}}"),
            "celsius",
            least=None,
        ),
        Panel(
            "XID errors",
            "Number of the driver's newest error; 0 is none.",
            _one(f"max by (namespace, pod, gpu) ({gpu.XID_ERRORS}{_PODS})", "{{pod}} {{gpu}}"),
            decimals=0,
        ),
    ),
    collapsed=True,
)

RUN = Dashboard(
    "run",
    "Trainyard / Run",
    "Loss, throughput, step time by rank, checkpoints, faults and memory of training runs.",
    (
        Variable("namespace", "namespace", m.STEP.name, "Namespace", several=True),
        Variable("run", "run", f'{m.STEP}{{namespace=~"$namespace"}}', "Run", several=True),
    ),
    (_NOW, _LEARNING, _SPEED, _FAULTS, _MACHINE, _GPUS),
)

"""How a worker is launched: the argument vector and the environment of one node's torchrun.

Shared by both executors, so that a pod and a local process run exactly the same thing. torchrun is
configured by its own PET_* variables only: a user's `torchrun ...` command needs no change and may
still override any of them with a flag.
"""

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from trainyard_api.job import (
    ATTEMPT_ENV,
    GRACE_ENV,
    HANG_ACTION_ENV,
    HANG_ENV,
    JOB_ENV,
    NODE_ENV,
    PEERS_ENV,
    REPORT_PORT_ENV,
    RESULT_FILE_ENV,
    RUN_DIR_ENV,
    RUN_ENV,
    START_DIR_ENV,
    START_RUN_ENV,
    START_STEP_ENV,
    START_WHAT_ENV,
    TRAINER_PORT_ENV,
    UID_ENV,
    TrainerJob,
)
from trainyard_api.policy import Hang
from trainyard_api.run import TrainingRun
from trainyard_lifecycle.plan import WorkerKey

RDZV_PORT = 29400
TRAINER_MODULE = "trainyard_trainer"

# From SIGTERM until whatever is left of a worker is killed: Kubernetes' own default.
GRACE_SECONDS = 30
# So much earlier torchrun kills ranks that have not ended, and the agent a torchrun that has not:
# each must still be there to say how the others ended.
_SHUTDOWN_MARGIN_SECONDS = 5
_AGENT_MARGIN_SECONDS = 2

# torchrun waits longer for its peers than the operator waits for the gang: the operator decides
# when a gang has failed to start, for all its workers at once.
JOIN_MARGIN_SECONDS = 120
KEEP_ALIVE_SECONDS = 5  # torchrun's own interval


@dataclass(frozen=True)
class LaunchTarget:
    """Where a worker runs: the addresses, directories and files of its pod or local process.

    Attributes:
        endpoint: host:port of the rendezvous store; node 0 serves it.
        address_of: a node's address. torchrun ranks nodes by the order of these strings, and rank 0
            must run on node 0 (where reports are read and the store is), so node 0's address must
            sort first.
        run_dir: the run's directory on its volume.
        start_dir: the directory of spec.startFrom; None without it, or once it isn't needed.
        report_port: where /metrics and /progress are served, on each node's own address.
        trainer_port: where a recipe's rank 0 serves them for the agent of its node; report_port
            where there is no agent.
        result_file: where the trainer leaves its termination message.
        log_dir: torchrun's own directory; each worker's error.json goes there.
        error_file: where torchrun copies the first failed worker's error.json. It removes the file
            first, so this can't be a pod's termination log (a mount point).
        grace_seconds: from SIGTERM until whatever is left of the worker is killed.
    """

    endpoint: str
    address_of: Callable[[int], str]
    run_dir: str
    report_port: int
    trainer_port: int
    result_file: str
    log_dir: str
    error_file: str | None = None
    start_dir: str | None = None
    grace_seconds: int = GRACE_SECONDS


def argv(run: TrainingRun) -> list[str]:
    """The command of every worker: torchrun around the recipe, the script or the program.

    A command that already begins with torchrun is left as it is.
    """
    command = run.spec.command
    if command is None:
        return ["torchrun", "-m", TRAINER_MODULE]
    if command[0].rpartition("/")[2] == "torchrun":
        return list(command)
    if command[0].endswith(".py"):
        return ["torchrun", *command]
    return ["torchrun", "--no-python", *command]


def env(run: TrainingRun, key: WorkerKey, nodes: int, target: LaunchTarget) -> dict[str, str]:
    """Environment of one worker in a gang of `nodes`."""
    spec = run.spec
    wait = spec.schedule_seconds + spec.start_seconds + spec.join_seconds + JOIN_MARGIN_SECONDS
    rdzv_conf = {
        "is_host": "true" if key.node == 0 else "false",
        "join_timeout": wait,
        "read_timeout": wait,  # also how long to wait for node 0's store to be there
        # Nor give up after 15 s on an agent that is starved of CPU or whose clock differs.
        "keep_alive_max_attempt": wait // KEEP_ALIVE_SECONDS,
    }
    variables = {
        "PET_NNODES": str(nodes),
        "PET_NPROC_PER_NODE": str(run.nproc),
        "PET_RDZV_BACKEND": "c10d",
        "PET_RDZV_ENDPOINT": target.endpoint,
        "PET_RDZV_ID": f"{run.name}-{key.attempt}",
        "PET_RDZV_CONF": ",".join(f"{name}={value}" for name, value in rdzv_conf.items()),
        "PET_LOCAL_ADDR": target.address_of(key.node),
        # A failed worker ends its node, and the operator starts the next attempt: only the operator
        # counts restarts, waits between them, and knows which failures are retryable.
        "PET_MAX_RESTARTS": "0",
        "PET_SHUTDOWN_TIMEOUT": str(max(1, target.grace_seconds - _SHUTDOWN_MARGIN_SECONDS)),
        GRACE_ENV: str(max(1, target.grace_seconds - _AGENT_MARGIN_SECONDS)),
        # Every rank's lines, each prefixed with its local rank, on torchrun's own output.
        "PET_TEE": "3",
        "PET_LOG_DIR": target.log_dir,
        RESULT_FILE_ENV: target.result_file,
        RUN_DIR_ENV: target.run_dir,
        RUN_ENV: run.name,
        ATTEMPT_ENV: str(key.attempt),
        "PYTHONUNBUFFERED": "1",
        **_network(run),
    }
    if target.error_file is not None:
        variables["TORCHELASTIC_ERROR_FILE"] = target.error_file
    if run.spec.recipe is not None:
        job = _job(run, run.spec.recipe, key.attempt, target)
        # A trainer of an older version refuses what it doesn't know: only if it was asked for.
        variables[JOB_ENV] = job.model_dump_json(by_alias=True, exclude_defaults=True)
        if not job.require_gpu:  # a container may see GPUs that its pod did not ask for
            variables["CUDA_VISIBLE_DEVICES"] = ""
        if target.trainer_port == target.report_port:
            return variables
        variables[TRAINER_PORT_ENV] = str(target.trainer_port)
    else:
        # Without it, a new run on an older one's data would look like an older attempt of it.
        variables[UID_ENV] = run.metadata.uid or ""
        variables |= _start(run, target) | _hangs(run)
    return variables | _agent(key.node, nodes, target)


def _start(run: TrainingRun, target: LaunchTarget) -> dict[str, str]:
    """Where a user's script finds what spec.startFrom names."""
    start = run.spec.start_from
    if start is None or target.start_dir is None:
        return {}
    variables = {
        START_DIR_ENV: target.start_dir,
        START_STEP_ENV: str(start.step),
        START_WHAT_ENV: start.what,
    }
    return variables if start.run is None else variables | {START_RUN_ENV: start.run}


def _hangs(run: TrainingRun) -> dict[str, str]:
    """When ranks of a user's script that make no progress are a hang. A trainer watches its own."""
    hang = run.spec.hang or Hang()
    return {HANG_ENV: str(hang.after_seconds), HANG_ACTION_ENV: hang.action}


def _agent(node: int, nodes: int, target: LaunchTarget) -> dict[str, str]:
    """Where the agent serves, and on node 0 where the others do."""
    variables = {REPORT_PORT_ENV: str(target.report_port), NODE_ENV: str(node)}
    if node == 0 and nodes > 1:
        peers = [f"{target.address_of(other)}:{target.report_port}" for other in range(1, nodes)]
        variables[PEERS_ENV] = ",".join(peers)
    return variables


def _network(run: TrainingRun) -> dict[str, str]:
    network = run.spec.network
    if network is None:
        return {}
    variables = dict(network.nccl)
    if network.interface:
        variables |= {
            "NCCL_SOCKET_IFNAME": network.interface,
            "GLOO_SOCKET_IFNAME": network.interface,
        }
    return variables


def _job(run: TrainingRun, recipe: str, attempt: int, target: LaunchTarget) -> TrainerJob:
    spec = run.spec
    return TrainerJob(
        run=run.name,
        namespace=run.namespace,
        uid=run.metadata.uid or "",
        attempt=attempt,
        recipe=recipe,
        config=spec.config or {},
        strategy=spec.strategy,
        precision=spec.precision,
        seed=spec.seed,
        checkpoint=spec.checkpoint,
        run_dir=target.run_dir,
        start_from=spec.start_from,
        start_dir=target.start_dir,
        report_port=target.trainer_port,
        require_gpu=run.asks_for_gpus,
    )


def requested_cpus(run: TrainingRun) -> Decimal | None:
    """CPUs of one node, shared by its processes: the limit, else the request, else None.

    Also None for an amount such as 1k, which no node has.
    """
    resources = run.spec.resources_per_node
    amount = (resources.limits.get("cpu") or resources.requests.get("cpu")) if resources else None
    if amount is None:
        return None
    if amount.endswith("m"):
        return Decimal(amount[:-1]) / 1000
    return Decimal(amount) if amount.replace(".", "", 1).isdecimal() else None

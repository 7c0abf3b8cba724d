"""The argument vector and environment of a worker, read back by torchrun's own parser."""

import json
from typing import Any

import pytest

from trainyard_api.job import TrainerJob
from trainyard_api.run import TrainingRun
from trainyard_lifecycle import launch
from trainyard_lifecycle.plan import WorkerKey


def make_run(**spec: Any) -> TrainingRun:
    if "command" not in spec:
        spec.setdefault("recipe", "char-gpt")
    return TrainingRun.model_validate(
        {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingRun",
            "metadata": {"name": "demo", "namespace": "team", "uid": "u-1"},
            "spec": spec,
        }
    )


def make_env(run: TrainingRun, node: int = 0, nodes: int = 2, **kwargs: Any) -> dict[str, str]:
    options: dict[str, Any] = {
        "endpoint": "demo-3-0.demo:29400",
        "address_of": lambda node: f"demo-3-{node}.demo",
        "run_dir": "/trainyard/demo",
        "report_port": 9400,
        "trainer_port": 9401,
        "result_file": "/dev/termination-log",
        "log_dir": "/tmp/torchelastic",
    }
    target = launch.LaunchTarget(**options | kwargs)
    return launch.env(run, WorkerKey(3, node), nodes, target)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (None, ["torchrun", "-m", "trainyard_trainer"]),
        (["train.py", "--lr", "1"], ["torchrun", "train.py", "--lr", "1"]),
        (["/app/train.py"], ["torchrun", "/app/train.py"]),
        (["torchrun", "--no-python", "x"], ["torchrun", "--no-python", "x"]),
        (["/opt/bin/torchrun", "x.py"], ["/opt/bin/torchrun", "x.py"]),
        (["python", "train.py"], ["torchrun", "--no-python", "python", "train.py"]),
        (["bash", "-c", "exit 3"], ["torchrun", "--no-python", "bash", "-c", "exit 3"]),
    ],
)
def test_argv(command: list[str] | None, expected: list[str]) -> None:
    run = make_run() if command is None else make_run(command=command)
    assert launch.argv(run) == expected


@pytest.mark.parametrize("node", [0, 1])
def test_torchrun_reads_every_variable(monkeypatch: pytest.MonkeyPatch, node: int) -> None:
    """torchrun's parser, given no flags, must arrive at what we meant."""
    torchrun = pytest.importorskip("torch.distributed.run")
    run = make_run(numProcPerNode=4, startDeadlineSeconds=100, command=["train.py", "--x"])
    for key, value in make_env(run, node=node).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = torchrun.parse_args(launch.argv(run)[1:])
    config, _, command = torchrun.config_from_args(args)
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node) == (2, 2, 4)
    assert (config.rdzv_backend, config.rdzv_endpoint) == ("c10d", "demo-3-0.demo:29400")
    assert config.run_id == "demo-3"
    assert config.local_addr == f"demo-3-{node}.demo"
    assert config.max_restarts == 0
    assert config.shutdown_timeout == launch.GRACE_SECONDS - 5
    assert config.logs_specs is not None
    assert config.logs_specs.root_log_dir == "/tmp/torchelastic"
    assert config.logs_specs._tee == torchrun.Std.ALL
    assert config.rdzv_configs["is_host"] == ("true" if node == 0 else "false")
    assert int(config.rdzv_configs["join_timeout"]) > 100
    assert int(config.rdzv_configs["read_timeout"]) > 100
    assert int(config.rdzv_configs["keep_alive_max_attempt"]) > 20
    assert command == ["-u", "train.py", "--x"]


def test_node_zero_gets_rank_zero() -> None:
    """torchrun ranks nodes by their sorted addresses."""
    api = pytest.importorskip("torch.distributed.elastic.rendezvous.dynamic_rendezvous")
    run = make_run(numNodes=12)
    addresses = [make_env(run, node, 12)["PET_LOCAL_ADDR"] for node in range(12)]
    nodes = [api._NodeDesc(address, pid, 0) for pid, address in enumerate(addresses)]
    assert min(reversed(nodes)).addr == "demo-3-0.demo"


def test_the_job_has_every_setting_of_the_run() -> None:
    run = make_run(
        config={"corpus": "a.txt"},
        strategy="fsdp",
        precision="bf16",
        seed=7,
        checkpoint={"everySteps": 5},
        resourcesPerNode={"limits": {"nvidia.com/gpu": "2"}},
    )
    variables = make_env(run)
    job = TrainerJob.model_validate_json(variables["TRAINYARD_JOB"])
    assert (job.run, job.namespace, job.uid, job.attempt) == ("demo", "team", "u-1", 3)
    assert (job.recipe, job.config) == ("char-gpt", {"corpus": "a.txt"})
    assert (job.strategy, job.precision, job.seed) == ("fsdp", "bf16", 7)
    assert job.checkpoint.every_steps == 5
    assert (job.run_dir, job.report_port) == ("/trainyard/demo", 9401)
    assert job.require_gpu
    assert "CUDA_VISIBLE_DEVICES" not in variables
    assert variables["PET_NPROC_PER_NODE"] == "2"
    assert json.loads(variables["TRAINYARD_JOB"])["runDir"] == "/trainyard/demo"


def test_a_recipe_that_asks_for_no_gpu_sees_none() -> None:
    """Not even where the node's container runtime shows every container all GPUs."""
    variables = make_env(make_run())
    assert not TrainerJob.model_validate_json(variables["TRAINYARD_JOB"]).require_gpu
    assert variables["CUDA_VISIBLE_DEVICES"] == ""


def test_the_agent_of_a_recipe_passes_on_the_report_of_its_trainer() -> None:
    run = make_run(recipe="char-gpt")
    variables = make_env(run, node=1)
    ports = (variables["TRAINYARD_REPORT_PORT"], variables["TRAINYARD_TRAINER_PORT"])
    assert ports == ("9400", "9401")
    assert variables["TRAINYARD_NODE"] == "1"
    assert make_env(run)["TRAINYARD_PEERS"] == "demo-3-1.demo:9400"
    assert "TRAINYARD_HANG_SECONDS" not in variables  # the trainer watches its own ranks

    alone = make_env(run, trainer_port=9400)
    job = TrainerJob.model_validate_json(alone["TRAINYARD_JOB"])
    assert job.report_port == 9400
    assert "TRAINYARD_REPORT_PORT" not in alone


def test_a_job_says_only_what_was_asked_for() -> None:
    """So that a trainer of an older version refuses a setting it doesn't know only if it is set."""
    job = json.loads(make_env(make_run(recipe="char-gpt"))["TRAINYARD_JOB"])
    assert {"strategy", "precision", "config", "requireGpu"} & job.keys() == set()
    assert {"run", "recipe", "runDir", "reportPort"} <= job.keys()


def test_a_command_gets_a_run_directory_and_no_job() -> None:
    variables = make_env(make_run(command=["train.py"]))
    assert "TRAINYARD_JOB" not in variables
    assert variables["TRAINYARD_RUN_DIR"] == "/trainyard/demo"
    assert variables["TRAINYARD_RESULT_FILE"] == "/dev/termination-log"
    assert variables["TRAINYARD_RUN_UID"] == "u-1"


def test_a_command_finds_what_it_starts_from() -> None:
    start = {"run": "a", "step": 40, "what": "weights"}
    run = make_run(command=["train.py"], startFrom=start)
    names = ("DIR", "RUN", "STEP", "WHAT")
    found = make_env(run, start_dir="/trainyard-start/a")
    values = [found[f"TRAINYARD_START_{name}"] for name in names]
    assert values == ["/trainyard-start/a", "a", "40", "weights"]
    run = make_run(command=["train.py"], startFrom={"path": "/mnt/a"})
    found = make_env(run, start_dir="/mnt/a")
    values = [found.get(f"TRAINYARD_START_{name}", "") for name in names]
    assert values == ["/mnt/a", "", "newest", "everything"]
    assert not any("START_DIR" in name for name in make_env(make_run(command=["train.py"])))
    assert not any("START_DIR" in name for name in make_env(make_run(startFrom={"run": "a"})))


def test_the_error_file_is_optional() -> None:
    run = make_run()
    assert "TORCHELASTIC_ERROR_FILE" not in make_env(run)
    assert make_env(run, error_file="/x/error.json")["TORCHELASTIC_ERROR_FILE"] == "/x/error.json"


def test_network() -> None:
    run = make_run(network={"interface": "eth1", "nccl": {"NCCL_IB_DISABLE": "1"}})
    variables = make_env(run)
    assert variables["NCCL_SOCKET_IFNAME"] == variables["GLOO_SOCKET_IFNAME"] == "eth1"
    assert variables["NCCL_IB_DISABLE"] == "1"


def test_the_agents_of_a_script_know_each_other() -> None:
    run = make_run(command=["train.py"], hang={"afterSeconds": 60, "action": "restart"})
    first = make_env(run, node=0, nodes=3)
    assert first["TRAINYARD_PEERS"] == "demo-3-1.demo:9400,demo-3-2.demo:9400"
    assert (first["TRAINYARD_HANG_SECONDS"], first["TRAINYARD_HANG_ACTION"]) == ("60", "restart")
    second = make_env(run, node=1, nodes=3)
    assert "TRAINYARD_PEERS" not in second
    assert (second["TRAINYARD_NODE"], second["TRAINYARD_REPORT_PORT"]) == ("1", "9400")


def test_a_script_is_watched_for_hangs_of_five_minutes_by_default() -> None:
    variables = make_env(make_run(command=["train.py"]), nodes=1)
    assert variables["TRAINYARD_HANG_SECONDS"] == "300"
    assert variables["TRAINYARD_HANG_ACTION"] == "warn"


def test_hang_is_refused_for_a_recipe() -> None:
    with pytest.raises(ValueError, match=r"set config\.hang_timeout_seconds"):
        make_run(hang={"afterSeconds": 60})

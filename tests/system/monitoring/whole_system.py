"""All parts that export metrics: a run of two processes, two servers and the operator."""

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

import trainyard_agent
from tests import patience
from tests.patience import until
from tests.ports import free_port
from tests.support.local.box import Box
from tests.support.monitoring.prometheus_server import Target
from tests.system.monitoring.cluster_stand_in import NAMESPACE, Cluster, ago, operator

RUN, STUDY, CONFIGURATION = "metered", "sizes", "batch_size 8"
# Pod names as a Deployment's ReplicaSet makes them.
GENERATOR_POD, CLASSIFIER_POD = "bard-serving-6d4cf56db6-x7k2p", "news-serving-7f9c8d5b4-q2wzt"
TINY = {
    "corpus": "stdlib",
    "max_steps": 1_000_000,
    "batch_size": 8,
    "block_size": 32,
    "n_layer": 1,
    "n_head": 2,
    "n_embd": 32,
    "log_steps": 10,
    "eval_steps": 50,
    "eval_batches": 2,
}
SPEC = {"numProcPerNode": 2, "config": TINY, "checkpoint": {"everySteps": 50}}


def start_run(box: Box) -> Callable[[], int]:
    """Start `trainyard run` with two processes; returns a function that waits for rank 0's port."""
    command = box.start("run", box.manifest(RUN, recipe="char-gpt", **SPEC))
    attempt = box.run_dir(RUN) / "attempts" / "1.json"

    def port() -> int:
        until(lambda: attempt.exists() or command.poll() is not None, "the run's ports")
        assert command.poll() is None, box.end(command)[1]
        return int(json.loads(attempt.read_text())["report"])

    return port


# Uses a little CPU, and reports nothing.
SCRIPT = "import time\nwhile True: sum(range(100_000)); time.sleep(0.2)"


@contextmanager
def script(directory: Path) -> Iterator[int]:
    """The agent with one rank of a script, as in a pod; yields its port."""
    port, lock = free_port(), os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
    variables = {
        "TRAINYARD_RUN": "script",
        "TRAINYARD_ATTEMPT": "1",
        "TRAINYARD_REPORT_PORT": str(port),
        "TRAINYARD_TERMINATION_LOG": str(directory / "termination-log"),
        **dict.fromkeys(("RANK", "LOCAL_RANK"), "0"),
        "WORLD_SIZE": "1",
    }
    agent = Path(trainyard_agent.__file__).parent / "__main__.py"
    command = [sys.executable, "-I", "-S", str(agent), str(directory), str(lock)]
    process = subprocess.Popen(
        [*command, sys.executable, "-c", SCRIPT], env={**os.environ, **variables}, pass_fds=[lock]
    )
    os.close(lock)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


def lower_priority(box: Box) -> None:
    """Keep the run from starving the other parts on a machine with few cores."""
    for pid in box.processes(RUN):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)


@contextmanager
def generator(run_dir: Path) -> Iterator[int]:
    """The port of a text generation server in its own process; it starts without a model."""
    command = [sys.executable, "-m", "trainyard_serving", "generate", "--port", "0"]
    options = ["--host", "127.0.0.1", "--run-dir", str(run_dir), "--poll-seconds", "0.1"]
    with subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    ) as server:
        try:
            assert server.stdout
            match = re.search(r":(\d+)$", server.stdout.readline().strip())
            assert match, "the server didn't start"
            yield int(match[1])
        finally:
            server.terminate()


@contextmanager
def client_load(request: Callable[[int], Any]) -> Iterator[None]:
    """Calls `request(0)`, `request(1)`, ... in a thread until the block ends."""
    stop = threading.Event()
    errors: list[BaseException] = []

    def send() -> None:
        for number in itertools.count():
            if stop.wait(0.1):
                return
            try:
                request(number)
            except BaseException as error:
                errors.append(error)
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not errors, errors


def add_objects(cluster: Cluster) -> None:
    """Runs in every state that the queries cover, in addition to the real run, and a study."""
    from trainyard_api import labels

    cluster.put_run(RUN, SPEC, labels={labels.STUDY: STUDY})
    gpus = {"resourcesPerNode": {"limits": {"nvidia.com/gpu": "8"}}}
    cluster.put_run("waits", {"queue": {"name": "gold"}, **gpus})
    begun = {"attempt": 1, "startTime": ago(60), "activeSince": ago(60), "restarts": 1}
    hang = {"number": 1, "startTime": ago(60), "endTime": ago(30), "outcome": "Failed"}
    later = ago(-3600)
    cluster.put_run(
        "hung",
        gpus,
        begun
        | {
            "phase": "Restarting",
            "reason": "Hang",
            "nextAttemptTime": later,
            "attempts": [hang | {"reason": "Hang"}],
        },
    )
    failed = begun | {"phase": "Failed", "completionTime": ago(1)}
    points = [(1, "measured", 1.0), (2, "measured", 0.9), (4, "projected", 0.7)]
    curves = [
        {
            "configuration": {},
            "label": label,
            "unit": unit,
            "points": [
                {
                    "processes": processes,
                    "source": source,
                    "throughput": dict.fromkeys(("value", "low", "high"), 900.0 * processes),
                    "speedup": processes * efficiency,
                    "efficiency": efficiency,
                    "costPerMillion": 0.5,
                }
                for processes, source, efficiency in points
            ],
        }
        for label, unit in ((CONFIGURATION, "tokens"), ("pictures", "samples"))
    ]
    matrix = {"template": {"spec": SPEC}, "matrix": {"numProcPerNode": [1, 2]}}
    measured = {"phase": "Succeeded", "curves": curves, "observedGeneration": 1}
    cluster.put_study(STUDY, matrix, measured | {"completionTime": ago(5)})
    cluster.put_run("broken", {}, failed | {"attempts": [hang | {"reason": "UserException"}]})


@contextmanager
def whole_system(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, list[Target]]]:
    """All parts running; yields the targets to scrape, by Prometheus job."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ExitStack() as stack:
        box = Box(directory)
        stack.callback(box.close)
        port_of_run = start_run(box)
        (directory / "generator" / "models").mkdir(parents=True)
        generator_port = stack.enter_context(generator(directory / "generator"))
        from tests.support.serving.models import export_char_gpt, write_manifest
        from tests.support.serving.news_model import WORDS, write_news_model
        from tests.support.serving.servers import running
        from trainyard_serving.classify.app import create_classify_app
        from trainyard_serving.settings import ClassifySettings

        write_news_model(directory / "classifier" / "models" / "step-00000010", step=10)
        settings = ClassifySettings(
            run_dir=str(directory / "classifier"), threads=1, poll_seconds=0.1, check_texts=20
        )
        classifier = stack.enter_context(running(create_classify_app(settings)))
        text = {"model": "shakespeare", "prompt": "A", "max_tokens": 4, "stream": True}
        # New connections only: a server may close an idle one while a busy machine pauses.
        limits = httpx.Limits(max_keepalive_connections=0)
        url = f"http://127.0.0.1:{generator_port}"
        client = stack.enter_context(
            httpx.Client(base_url=url, timeout=patience.SECONDS, limits=limits)
        )
        classifier_client = stack.enter_context(
            httpx.Client(base_url=classifier.base_url, timeout=patience.SECONDS, limits=limits)
        )

        def request(number: int) -> None:
            with client.stream("POST", "/v1/completions", json=text) as answer:
                answer.read()
            classifier_client.post("/predict", json={"text": WORDS[number % len(WORDS)]})

        assert client.post("/v1/completions", json=text).status_code == 503
        stack.enter_context(client_load(request))
        staging = directory / "staging"
        staging.mkdir()
        export_char_gpt(staging)
        write_manifest(staging)
        staging.rename(directory / "generator" / "models" / "step-00000500")

        cluster, port = Cluster(), free_port()
        add_objects(cluster)
        report = port_of_run()
        cluster.report_ports[f"{RUN}-1-0"] = report
        stack.enter_context(operator(cluster, port, monkeypatch))
        until(lambda: client.get("/ready").status_code == 200, "the generator's model")
        until(lambda: classifier_client.get("/ready").status_code == 200, "the classifier's model")
        until(lambda: cluster.phase(RUN) == "Running", "the run")
        lower_priority(box)
        (directory / "script").mkdir()
        script_port = stack.enter_context(script(directory / "script"))
        at = {"namespace": NAMESPACE}
        yield {
            "runs": [
                Target(report, at | {"pod": f"{RUN}-1-0"}),
                Target(script_port, at | {"pod": "script-1-0"}),
            ],
            "operator": [
                Target(port, {"namespace": "trainyard-system", "pod": "trainyard-operator-0"}, True)
            ],
            "serving": [
                Target(generator_port, at | {"pod": GENERATOR_POD}),
                Target(
                    int(str(classifier.base_url).rpartition(":")[2]), at | {"pod": CLASSIFIER_POD}
                ),
            ],
        }

"""What monitoring costs: bytes and milliseconds of a scrape, seconds of evaluating the rules.

    python -m tests.bench.scrape_cost

A trainer with N ranks and an operator with N runs expose what they would; a real Prometheus then
scrapes all of it every second, rules included. Times are medians.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest

from tests.patience import until
from tests.support.monitoring.prometheus_server import Target, prometheus
from trainyard_api import labels
from trainyard_api.job import TrainerJob
from trainyard_operator.metrics import OperatorMetrics
from trainyard_operator.objects import ObjectKey
from trainyard_trainer.reporting.metrics import TrainerMetrics

RULES = Path(__file__).parents[2] / "charts" / "operator" / "rules" / "trainyard.yaml"
RANKS, RUNS, REPETITIONS = (2, 64, 1024), (10, 500, 2000), 50
TRAINERS, SECONDS = 50, 20


def trainer(run: str, ranks: int) -> TrainerMetrics:
    """The metrics of a run that has trained, evaluated and saved."""
    metrics = TrainerMetrics(TrainerJob(run=run, recipe="gpt", run_dir="/x", report_port=0))
    for known in (metrics.step, metrics.loss, metrics.learning_rate, metrics.world_size):
        known.set(ranks)
    for known in (metrics.total_steps, metrics.eval_loss, metrics.grad_norm):
        known.set(1)
    for known in (metrics.checkpoint_step, metrics.checkpoint_time, metrics.stalled_seconds):
        known.set(time.time())
    metrics.set_evaluation({"eval_loss": 1.0, "accuracy": 0.5})
    metrics.set_rank_seconds([0.1 + rank / 1e6 for rank in range(ranks)])
    metrics.step_seconds.observe(0.1)
    metrics.productive_seconds.inc(0.1)
    metrics.tokens.inc(1000)
    return metrics


def operator(runs: int) -> OperatorMetrics:
    """The metrics of an operator that looks after so many runs, a tenth of them waiting."""
    operator_metrics = OperatorMetrics()
    began = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    bodies: dict[Any, dict[str, Any]] = {}
    for number in range(runs):
        phase = "Pending" if number % 10 == 0 else "Running"
        name = f"run-{number}"
        bodies[ObjectKey("team", name)] = {
            "metadata": {"namespace": "team", "name": name, "labels": {labels.STUDY: "study"}},
            "spec": {"resourcesPerNode": {"limits": {"nvidia.com/gpu": 8}}},
            "status": {
                "phase": phase,
                "activeSince": began,
                "attempts": [{"startTime": began, "outcome": "Failed", "reason": "NodeLost"}],
            },
        }
    operator_metrics.runs.replace_all(bodies)
    operator_metrics.leader.set(1)
    return operator_metrics


def milliseconds(work: Callable[[], object]) -> float:
    """The median time of a call."""
    times = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def show(what: str, text: Callable[[], bytes]) -> None:
    exposed = text()
    series = sum(not line.startswith(b"#") for line in exposed.splitlines())
    print(f"{what:<28}{series:>9}{len(exposed) / 1024:>10.1f}{milliseconds(text):>10.2f}")


@contextmanager
def exposed(text: Callable[[], bytes]) -> Iterator[int]:
    """`text` behind HTTP; the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = text()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError):  # Prometheus ends before we do
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Scrapes are no news."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def rules() -> None:
    """Seconds that Prometheus takes for each group of rules, of a fleet."""
    with ExitStack() as stack:
        runs = []
        for number in range(TRAINERS):
            port = stack.enter_context(exposed(trainer(f"run-{number}", 16).text))
            runs.append(Target(port, {"namespace": "team", "pod": f"run-{number}-1-0"}))
        registry = operator(RUNS[1]).registry
        port = stack.enter_context(exposed(lambda: generate_latest(registry)))
        targets = {"runs": runs, "operator": [Target(port, {}, honor_labels=True)]}
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = stack.enter_context(prometheus(directory, targets, RULES))
        until(lambda: server.values("up == 0") == [] and server.values("up"), "scrapes")
        time.sleep(SECONDS)
        print(f"\n{'rules, of ' + str(TRAINERS) + ' trainers':<28}{'rules':>9}{'':>10}{'ms':>10}")
        for group in server.get("/api/v1/rules")["groups"]:
            spent = 1000 * float(group["evaluationTime"])
            print(f"{group['name']:<28}{len(group['rules']):>9}{'':>10}{spent:>10.2f}")
        found = server.values("sum(scrape_samples_scraped)")
        print(f"series of {TRAINERS} trainers and {RUNS[1]} runs: {found[0][1]:.0f}")


def main() -> None:
    """Print a line for each."""
    print(f"{'a scrape':<28}{'series':>9}{'KiB':>10}{'ms':>10}")
    for ranks in RANKS:
        show(f"trainer, {ranks} ranks", trainer("run", ranks).text)
    for runs in RUNS:
        registry = operator(runs).registry
        show(f"operator, {runs} runs", lambda registry=registry: generate_latest(registry))  # type: ignore[misc]
    rules()


if __name__ == "__main__":
    main()

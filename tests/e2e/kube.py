"""kubectl and helm as a user calls them, and waiting for what they show."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tests.patience import SECONDS

REPO = Path(__file__).resolve().parents[2]
CLUSTER = REPO / ".cluster"  # written by `make cluster`

# Pods start, Python imports torch, hundreds of steps are trained: on a machine of which little is
# left, several times as long as anything else. A run that fails ends the wait at once.
LONG = 4 * SECONDS
# For kubectl and helm, where they wait themselves; `run` waits a little longer for them.
TIMEOUT = f"--timeout={SECONDS:.0f}s"

T = TypeVar("T")


class CommandError(Exception):
    """A command ended with a status other than 0; the message holds its standard error."""


def environment() -> dict[str, str]:
    """The cluster that `make cluster` last named, and the kubectl and helm it came with, if any.

    KUBECONFIG is ignored: tests must never run on whatever cluster a shell happens to know.
    """
    path = f"{CLUSTER / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"KUBECONFIG": str(CLUSTER / "kubeconfig"), "PATH": path}


def run(*command: str, stdin: str | None = None, timeout: float = 2 * SECONDS) -> str:
    """Standard output of `command`."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
        check=False,
    )
    if done.returncode:
        raise CommandError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_until(what: str, check: Callable[[], T | None], deadline: float = SECONDS) -> T:
    """The first true value of `check`, asked twice a second; AssertionError at the deadline."""
    end = time.monotonic() + deadline
    while True:
        value = check()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:.0f} s: {what}")
        time.sleep(0.5)


class Namespace:
    """kubectl in one namespace."""

    def __init__(self, name: str) -> None:
        self.name = name

    def kubectl(self, *args: str, stdin: str | None = None) -> str:
        return run("kubectl", "--namespace", self.name, *args, stdin=stdin)

    def apply(self, *manifests: dict[str, Any]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(items))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        text = self.kubectl("get", kind, name, "--ignore-not-found", "-o", "json")
        return json.loads(text) if text.strip() else None

    def items(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        args = ("--selector", selector) if selector else ()
        items: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *args, "-o", "json"))[
            "items"
        ]
        return items

    def pods(self, run_name: str, attempt: int | None = None) -> list[dict[str, Any]]:
        """A run's pods, by node."""
        selector = f"trainyard.dev/run={run_name}"
        if attempt is not None:
            selector += f",trainyard.dev/attempt={attempt}"
        return sorted(self.items("pods", selector), key=lambda pod: pod["metadata"]["name"])

    def status(self, run_name: str) -> dict[str, Any]:
        found = self.get("trainingrun", run_name)
        return (found or {}).get("status") or {}

    def wait_status(
        self,
        run_name: str,
        what: str,
        check: Callable[[dict[str, Any]], bool],
    ) -> dict[str, Any]:
        """The run's status once `check` holds; a run that failed instead ends the wait."""

        def look() -> dict[str, Any] | None:
            status = self.status(run_name)
            if check(status):
                return status
            if status.get("phase") == "Failed":
                raise AssertionError(f"waiting for {what}, but it failed: {status}")
            return None

        try:
            return wait_until(f"{run_name}: {what}", look, LONG)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.describe(run_name)}") from None

    def wait_phase(self, run_name: str, phase: str) -> dict[str, Any]:
        return self.wait_status(run_name, phase, lambda status: status.get("phase") == phase)

    def describe(self, run_name: str) -> str:
        """What one would look at: the run, its pods, its events, the log of its newest pod."""
        parts = [
            self.kubectl("get", "trainingrun", run_name, "-o", "yaml"),
            self.kubectl("get", "pods", "-o", "wide"),
            self.kubectl("get", "events", "--sort-by", ".lastTimestamp"),
        ]
        for pod in self.pods(run_name)[-2:]:
            name = pod["metadata"]["name"]
            try:
                parts.append(f"{name}:\n" + self.kubectl("logs", name, "--tail", "40"))
            except CommandError as error:
                parts.append(str(error))
        return "\n".join(parts)

    def event_reasons(self, run_name: str) -> list[str]:
        """Reasons of the Events about a run, in order."""
        fields = f"involvedObject.kind=TrainingRun,involvedObject.name={run_name}"
        text = self.kubectl("get", "events", "--field-selector", fields, "-o", "json")
        items = json.loads(text)["items"]
        items.sort(key=lambda item: item.get("eventTime") or item.get("firstTimestamp") or "")
        return [item["reason"] for item in items]


def rank_pids(space: Namespace, pod: str) -> list[int]:
    """Process ids, inside the pod, of the ranks that torchrun started there."""
    script = (
        "import os\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n"
        "        environ = open(f'/proc/{pid}/environ').read().split('\\0')\n"
        "        command = open(f'/proc/{pid}/cmdline').read().split('\\0')\n"
        "    except OSError: continue\n"
        "    if any(v.startswith('LOCAL_RANK=') for v in environ)"
        " and not any('resource_tracker' in c for c in command):\n"
        "        print(pid)\n"
    )
    text = space.kubectl("exec", pod, "-c", "trainer", "--", "python3", "-c", script)
    return sorted(int(line) for line in text.split())


def kill_rank(space: Namespace, pod: str) -> None:
    """kill -9 the first rank of a pod."""
    pid = rank_pids(space, pod)[0]
    space.kubectl(
        "exec", pod, "-c", "trainer", "--", "python3", "-c", f"import os; os.kill({pid}, 9)"
    )

"""Workers as local processes: starts them, stops them, and describes them to `reconcile`."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import trainyard_agent
from trainyard_agent import ending, procfs
from trainyard_api.job import ERROR_FILE, EXIT_CONFIG, RESULT_FILE
from trainyard_api.run import TrainingRun
from trainyard_lifecycle import launch
from trainyard_lifecycle.agent_output import positions, rank_exits
from trainyard_lifecycle.plan import Worker, WorkerKey, worker_name
from trainyard_local import gpus, lock, preflight
from trainyard_local.store import WORKING_DIRECTORY, RunDir
from trainyard_storage.files import write_text_atomic

LOCK_FILE = "lock"
DELETING_FILE = "deleting"
LOG_TAIL_BYTES = 8192
# Node 0's address must sort first (see LaunchTarget); Linux accepts all of 127.0.0.0/8.
NODE_0 = "127.0.0.1"
AGENT = str(Path(trainyard_agent.__file__).parent / "__main__.py")


class Workers:
    """The workers of one run. Only the holder of the run's lock may create or delete them."""

    def __init__(self, run_dir: RunDir) -> None:
        self._dir = run_dir
        self._children: list[subprocess.Popen[bytes]] = []

    def observe(self) -> tuple[Worker, ...]:
        """Every existing worker, sorted by attempt and node."""
        self._children = [child for child in self._children if child.poll() is None]
        workers = filter(None, map(self._describe, self._directories()))
        return tuple(sorted(workers, key=lambda worker: (worker.attempt, worker.node)))

    def create(self, run: TrainingRun, key: WorkerKey, nodes: int) -> None:
        """Start one worker, unless it exists or a worker of another attempt is still running.

        In that case the next reconcile asks again: two attempts never train at the same time.
        """
        if any(worker.attempt != key.attempt and not worker.finished for worker in self.observe()):
            return
        directory = self._dir.workers / f"{key.attempt}-{key.node}"
        directory.mkdir(parents=True, exist_ok=True)
        if (directory / ending.EXIT_FILE).exists():
            return
        with contextlib.suppress(lock.LockHeldError), lock.held(directory / LOCK_FILE) as file:
            problem = preflight.problem(run, run.metadata.annotations[WORKING_DIRECTORY])
            if problem := problem or self._make_directories(run):
                _record_refusal(directory, problem)
            else:
                self._start(run, key, nodes, directory, file.fileno())

    def delete(self, name: str) -> None:
        """Ask a running worker to stop, or remove the directory of one that has exited."""
        directory = self._dir.workers / name.removeprefix(f"{self._dir.name}-")
        pid = _agent_pid(directory)
        if pid is None:
            procfs.kill_worker(directory)
            shutil.rmtree(directory, ignore_errors=True)
            return
        (directory / DELETING_FILE).touch()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    def kill_all(self) -> None:
        """Kill every process of the run; workers get no time to save."""
        for directory in self._directories():
            if (pid := _agent_pid(directory)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            procfs.kill_worker(directory)
        for child in self._children:
            child.wait()

    def report_port(self, attempt: int) -> int:
        """The port where the agent of the attempt's node 0 serves the report."""
        return int(self._ports(attempt)["report"])

    def _start(
        self, run: TrainingRun, key: WorkerKey, nodes: int, directory: Path, lock_fd: int
    ) -> None:
        data = self._dir.data(run.to_wire())
        ports = self._ports(key.attempt)
        target = launch.LaunchTarget(
            endpoint=f"{NODE_0}:{ports['rendezvous']}",
            address_of=lambda node: NODE_0 if node == 0 else f"127.0.0.{node + 1}",
            run_dir=str(data),
            report_port=ports["report"],
            # An attempt that an older version began has none.
            trainer_port=ports.get("trainer", ports["report"]),
            result_file=str(directory / RESULT_FILE),
            log_dir=str(directory / "torchelastic"),
            error_file=str(directory / ERROR_FILE),
            start_dir=self._dir.start_dir(run),
        )
        variables = launch.env(run, key, nodes, target)
        if nodes > 1 and "OMP_NUM_THREADS" not in os.environ:
            # The nodes share this machine, but PyTorch would give each of them all cores.
            cores = (os.cpu_count() or 1) // (nodes * run.nproc)
            variables["OMP_NUM_THREADS"] = str(max(1, cores))
        variables |= {
            entry["name"]: str(entry["value"])
            for entry in run.trainer_template.get("env") or []
            if "value" in entry
        }
        variables |= gpus.of_node(run, key.node)
        variables |= {"PATH": preflight.search_path(), procfs.TOKEN_ENV: str(directory)}
        agent_argv = [sys.executable, "-I", "-S", AGENT, str(directory), str(lock_fd)]
        with self._dir.log_file(key.attempt, key.node).open("ab") as log:
            child = subprocess.Popen(
                [*agent_argv, *launch.argv(run)],
                env={**os.environ, **variables},
                cwd=run.metadata.annotations[WORKING_DIRECTORY],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[lock_fd],
                start_new_session=True,
            )
        self._children.append(child)

    def _make_directories(self, run: TrainingRun) -> str | None:
        """Make those that workers write to; returns why they can't be made."""
        data = self._dir.data(run.to_wire())
        try:
            data.mkdir(parents=True, exist_ok=True)
            self._dir.logs.mkdir(exist_ok=True)
        except OSError as error:
            return (
                f"the run directory {data} cannot be written: {error.strerror}; check the volume"
                " and its permissions"
            )
        return None

    def _ports(self, attempt: int) -> dict[str, int]:
        """Free ports, chosen once per attempt."""
        path = self._dir.attempts / f"{attempt}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            names = ("rendezvous", "report", "trainer")
            write_text_atomic(path, json.dumps(dict(zip(names, free_ports(3), strict=True))))
        ports: dict[str, int] = json.loads(path.read_text())
        return ports

    def _directories(self) -> list[Path]:
        return [path for path in self._dir.workers.glob("*-*") if path.is_dir()]

    def _describe(self, directory: Path) -> Worker | None:
        """The worker of `directory`; None if it never started or is deleted."""
        attempt, node = (int(part) for part in directory.name.split("-"))
        name = worker_name(self._dir.name, attempt, node)
        alive = _is_locked(directory)
        entry = _exit_entry(directory)
        deleting = (directory / DELETING_FILE).exists()
        if alive and entry is None:
            if deleting:
                self._kill_if_overdue(directory)
            return Worker(
                name, attempt, node, "Running", deleting=deleting, host=socket.gethostname()
            )
        if deleting:
            if not alive:
                self.delete(name)
            return None
        if entry is None:
            return self._describe_lost(directory, name, attempt, node)
        failed = entry["exitCode"] != 0
        return Worker(
            name,
            attempt,
            node,
            "Failed" if failed else "Succeeded",
            exit_code=entry["exitCode"],
            exit_reason="Error" if failed else "Completed",
            termination_message=_termination_message(directory),
            ranks=rank_exits(entry.get("ranks", [])),
            collectives=positions(entry.get("collectives")),
            log_tail=log_tail(self._dir.log_file(attempt, node)) if failed else "",
            host=socket.gethostname(),
            finished_at=datetime.fromisoformat(entry["finishedAt"]),
        )

    def _describe_lost(self, directory: Path, name: str, attempt: int, node: int) -> Worker | None:
        """A worker whose agent left no exit status: it was killed with SIGKILL, or by a reboot."""
        identity = _agent_identity(directory)
        if identity is None:
            return None  # never started
        procfs.kill_worker(directory)  # its torchrun may have survived it
        if identity["boot"] == procfs.boot_id():
            ending.write_exit(directory, 128 + signal.SIGKILL)
            return self._describe(directory)
        return Worker(
            name,
            attempt,
            node,
            "Failed",
            disruption="DeletionByPodGC",  # what Kubernetes reports for pods of a lost node
            host=socket.gethostname(),
        )

    def _kill_if_overdue(self, directory: Path) -> None:
        """Kill a worker that its agent has not stopped in time (is stopped, or stuck in I/O)."""
        requested_at = (directory / DELETING_FILE).stat().st_mtime
        if time.time() - requested_at > launch.GRACE_SECONDS + 10:
            procfs.kill_worker(directory)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((NODE_0, 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def log_tail(path: Path) -> str:
    """The last lines of a log; empty if it does not exist."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace")
    return ""


def _record_refusal(directory: Path, message: str) -> None:
    """Record that a worker could not start, as the trainer would for an error in the manifest."""
    write_text_atomic(directory / ERROR_FILE, json.dumps({"message": f"ConfigError: {message}"}))
    ending.write_exit(directory, EXIT_CONFIG)


def _is_locked(directory: Path) -> bool:
    return lock.holder(directory / LOCK_FILE) is not None


def _agent_identity(directory: Path) -> dict[str, Any] | None:
    """The agent's process id and boot id, as it wrote them; None if it never started."""
    try:
        identity: dict[str, Any] = json.loads((directory / LOCK_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return identity


def _agent_pid(directory: Path) -> int | None:
    """The running agent's process id: while it holds the lock, the id cannot be reused."""
    deadline = time.monotonic() + 5
    while _is_locked(directory):
        if (identity := _agent_identity(directory)) is not None:
            return int(identity["pid"])
        if time.monotonic() > deadline:  # stopped before it wrote its id
            return None
        time.sleep(0.01)
    return None


def _exit_entry(directory: Path) -> dict[str, Any] | None:
    try:
        entry: dict[str, Any] = json.loads((directory / ending.EXIT_FILE).read_text())
    except FileNotFoundError:
        return None
    return entry


def _termination_message(directory: Path) -> str:
    """The first error of the ranks, as torchrun recorded it; else rank 0's result."""
    for name in (ERROR_FILE, RESULT_FILE):
        with contextlib.suppress(OSError):
            if text := (directory / name).read_text(errors="replace").strip():
                return text
    return ""

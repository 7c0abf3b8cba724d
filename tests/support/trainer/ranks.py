"""Trainer ranks as processes of a test: started, watched, killed, and read."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import patience
from tests.patience import until
from tests.ports import free_port
from trainyard_api.job import JOB_ENV, RESULT_FILE_ENV, RUN_DIR_ENV, TrainerJob
from trainyard_api.progress import ProgressReport

ROOT = Path(__file__).parents[3]


def tiny_job(folder: Path, recipe: str, config: dict[str, Any], /, **more: Any) -> TrainerJob:
    """A job that runs in `folder`; `more` are fields of the job, in place of the usual ones."""
    usual: dict[str, Any] = {
        "run": "tiny",
        "recipe": recipe,
        "config": config,
        "seed": 7,
        "run_dir": str(folder / "run"),
        "report_port": free_port(),
    }
    return TrainerJob(**(usual | more))


# The Hub's client reads its switch once, when the first run's recipe imports it.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "HF_HUB_OFFLINE": "1"}


class RankServer:
    """See rank_server.py."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        """`environment`: more of the ranks' environment."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.trainer.rank_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT | (environment or {}),
        )

    def preload(self, *modules: str) -> None:
        """Import modules once instead of in every run."""
        self.ask({"import": list(modules)})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=patience.SECONDS)


@dataclass
class Run:
    """Ranks of one attempt."""

    server: RankServer
    job: TrainerJob
    folder: Path
    pids: list[int]
    codes: dict[int, int] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return Path(self.job.run_dir)

    @property
    def out(self) -> str:
        return self._read("out")

    @property
    def err(self) -> str:
        return self._read("err")

    @property
    def result(self) -> dict[str, Any]:
        """The result that rank 0 wrote after a success."""
        value: dict[str, Any] = json.loads((self.folder / "result.json").read_bytes())
        return value

    def error_message(self, rank: int | None = None) -> str:
        """The message of the error that all ranks printed, or of one rank's error file."""
        name = "result.json" if rank is None else f"error-{rank}.json"
        record = json.loads((self.folder / name).read_bytes())
        return str(record["message"]["message"])

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        lines = (self.run_dir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def losses(self) -> dict[int, float]:
        """Step -> training loss."""
        return {line["step"]: line["loss"] for line in self.history() if "loss" in line}

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        """Poll until `condition` holds while the run continues."""
        until(condition, what, lambda: self.out + self.err)

    def wait_for_report(self, condition: Callable[[ProgressReport], bool]) -> ProgressReport:
        """The first report for which `condition` holds."""
        found: list[ProgressReport] = []

        def ask() -> bool:
            url = f"http://127.0.0.1:{self.job.report_port}/progress"
            try:
                with urllib.request.urlopen(url, timeout=patience.SECONDS) as response:
                    report = ProgressReport.model_validate_json(response.read())
            except OSError:
                return False
            found[:] = [report] if condition(report) else []
            return bool(found)

        self.wait_until(ask, "the report says so")
        return found[0]

    def wait_for_step(self, step: int) -> ProgressReport:
        """The first report that has logged this step or a later one."""
        return self.wait_for_report(lambda r: (r.step or 0) >= step and r.loss is not None)

    def kill(self) -> None:
        """SIGKILL every rank."""
        for pid in self.pids:
            if pid not in self.codes:
                os.kill(pid, signal.SIGKILL)
        self.wait()

    def wait(self, *, terminate: bool = True) -> list[int]:
        """Exit codes of all ranks; when one fails the others get SIGTERM, as from torchrun.

        Without `terminate` they are left to find out by themselves.
        """
        until(lambda: self._all_ended(terminate), "the ranks end", lambda: self.out + self.err)
        return [self.codes[pid] for pid in self.pids]

    def running(self, pid: int) -> bool:
        """Whether this rank still runs."""
        self._poll()
        return pid not in self.codes

    def _poll(self) -> list[int]:
        """Hear how ranks ended; those that still ran."""
        running = [pid for pid in self.pids if pid not in self.codes]
        for pid, code in self.server.ask({"poll": running}).items():
            if code is not None:
                self.codes[int(pid)] = code
        return running

    def _all_ended(self, terminate: bool) -> bool:
        running = self._poll()
        if terminate and any(self.codes.values()):
            for other in running:
                if other not in self.codes:
                    os.kill(other, signal.SIGTERM)
        return len(self.codes) == len(self.pids)

    def _read(self, kind: str) -> str:
        paths = sorted(self.folder.glob(f"{kind}-*"))
        return "".join(path.read_text() for path in paths)


class Launcher:
    """Starts the ranks of jobs; their files go below `folder`."""

    def __init__(self, server: RankServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.runs: list[Run] = []

    def __call__(
        self,
        job: TrainerJob | Sequence[TrainerJob],  # one for all ranks, or one for each
        ranks: int = 1,
        only: Sequence[int] | None = None,  # start just these of the ranks
        env: dict[str, str] | None = None,
        picture: bool = False,  # drawing takes longer than most of these runs
        max_file_bytes: int | None = None,
    ) -> Run:
        """Start them and return at once."""
        jobs = [job] * ranks if isinstance(job, TrainerJob) else job
        folder = self.folder / f"attempt-{len(self.runs)}"
        folder.mkdir(parents=True)
        shared = {RESULT_FILE_ENV: str(folder / "result.json"), RUN_DIR_ENV: jobs[0].run_dir}
        if ranks > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
            shared |= {"WORLD_SIZE": str(ranks)}
        run = Run(self.server, jobs[0], folder, [], env=env or {})
        self.runs.append(run)
        for rank in only or range(ranks):
            own = {"TORCHELASTIC_ERROR_FILE": str(folder / f"error-{rank}.json")}
            own |= {JOB_ENV: jobs[rank].model_dump_json(by_alias=True)}
            if ranks > 1:
                own |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            request = {
                "argv": [],
                "env": shared | own | (env or {}),
                "out": str(folder / f"out-{rank}"),
                "err": str(folder / f"err-{rank}"),
                "picture": picture,
                "max_file_bytes": max_file_bytes,
            }
            run.pids.append(self.server.ask({"start": request})["pid"])
        return run

    def close(self) -> None:
        """Kill what still runs."""
        for run in self.runs:
            run.kill()

"""`python -m trainyard_trainer`: one rank of a training run, under torchrun or alone."""

import os
import sys

from trainyard_trainer.errors import exit_with, interrupt_once
from trainyard_trainer.jobs import read_job
from trainyard_trainer.registry import check_recipe
from trainyard_trainer.reporting.http_report import ReportServer


def prepare_torch() -> None:
    """Set environment variables that torch reads when it is imported."""
    # 2 MiB pages for large CPU tensors: their allocation time is mostly page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # No C++ warnings. When the store's server has exited, torch's client warns with thirty lines of
    # C++ frames, besides an exception that is reported in one line; while ranks wait to join, it
    # warns every five seconds, besides our message about missing ranks. Errors (NCCL's watchdog, an
    # unreachable store) and Python's warnings are still shown.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> int:
    """Train; returns the exit status (78 for an error in the manifest)."""
    prepare_torch()
    interrupt_once()
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    server = None
    try:
        job = read_job(sys.argv[1:])
        check_recipe(job.recipe)
        if rank == 0:
            # Before torch is imported, so that /progress is served while the ranks join.
            server = ReportServer(job, world_size)
            server.serve(job.report_port)
        from trainyard_trainer.worker import work

        work(job, server, rank)
    except (Exception, KeyboardInterrupt) as error:
        if server:
            server.update(phase="failed", message=str(error))
        status = exit_with(error, rank)
        # Not sys.exit: a checkpoint thread may be waiting for lost ranks.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: torch sometimes aborts a process at exit because of its threads, and a run that
    # has exported its model must not count as failed.
    os._exit(status)

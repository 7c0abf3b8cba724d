"""`python -m trainyard_trainer`: one rank of a training run, under torchrun or alone."""

import os
import sys

from trainyard_trainer.errors import exit_with, interrupt_once
from trainyard_trainer.jobs import read_job
from trainyard_trainer.recipes import check_recipe
from trainyard_trainer.reporting.http_report import ReportServer


def prepare_torch() -> None:
    """Set what torch reads from the environment when it is imported."""
    # Large tensors of a CPU in 2 MiB pages: most of the time their memory costs is in page faults.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Without its C++ warnings. When the rank that serves the store has ended, torch's client of it
    # warns with thirty lines of C++ frames, and raises an exception besides, from which we make one
    # line; while ranks wait to join it warns every five seconds, and we say which ones are missing.
    # Errors (NCCL's watchdog, a store that can't be reached) and Python's warnings are still shown.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> int:
    """Train; the process's exit status (78 for a mistake in the manifest)."""
    prepare_torch()
    interrupt_once()
    rank = int(os.environ.get("RANK", "0"))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    server = None
    try:
        job = read_job(sys.argv[1:])
        check_recipe(job.recipe)
        if rank == 0:
            # Before torch is even imported: whoever asks, hears that the run is joining.
            server = ReportServer(job, world_size)
            server.serve(job.report_port)
        from trainyard_trainer.worker import work

        work(job, server, rank)
    except (Exception, KeyboardInterrupt) as error:
        if server:
            server.update(phase="failed", message=str(error))
        status = exit_with(error, rank)
        # Not sys.exit: a checkpoint thread may be waiting for ranks that will never answer.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: torch now and then aborts a process that is taken down with its threads, and a
    # run that has left its model must not count as failed.
    os._exit(status)

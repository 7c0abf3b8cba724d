"""Runs that have outlived ttlSecondsAfterFinished: removed by the next command that looks."""

from contextlib import suppress

from trainyard_local.store import RunBusyError, RunDir, list_runs


def remove_expired() -> None:
    """Delete every finished run whose time has come; `reconcile` decides, as on Kubernetes."""
    for run_dir in list_runs():
        if run_dir.read()["spec"].get("ttlSecondsAfterFinished") is not None:
            with suppress(RunBusyError):
                _remove_if_expired(run_dir)


def _remove_if_expired(run_dir: RunDir) -> None:
    from trainyard_lifecycle.reconcile import reconcile
    from trainyard_local.backend import LocalBackend

    with run_dir.locked():
        if run_dir.exists():
            backend = LocalBackend(run_dir)
            run = backend.load()
            plan = reconcile(backend.observe(run))
            if plan.delete_run:
                backend.apply(run, plan)

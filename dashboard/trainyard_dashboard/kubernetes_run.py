"""Events and logs of one run of a cluster, each only as far as the API server lets us read them."""

import json
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trainyard_api.labels import CONTAINER
from trainyard_dashboard.catalog import RunSummary
from trainyard_dashboard.local_run import MAX_LOG_BYTES, MAX_LOG_LINES, printable
from trainyard_dashboard.run_details import MAX_ITEMS, MAX_TEXT, LogTail, Part, RunEvent, bounded

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

MAX_EVENTS = 500  # requested; the newest MAX_ITEMS are shown
MAX_BYTES = 4 << 20  # of one answer
FORBIDDEN = 403
Timeout = tuple[int, int]


class UnreadableError(Exception):
    """The API server does not give it; the message is one line that says why."""

    def __init__(self, message: str, setting: str = "") -> None:
        """`setting`: the chart's value that gives the right to it, if that is what lacks."""
        hint = f": install charts/operator with {setting}=true" if setting else ""
        super().__init__(message + hint)


def read_events(api: "CoreV1Api", run: RunSummary, timeout: Timeout) -> Part[RunEvent]:
    """The run's own events, newest first; those of its pods are not among them."""
    selector = f"involvedObject.kind=TrainingRun,involvedObject.name={run.name}"
    try:
        data = _get(
            "dashboard.readEvents",
            api.list_namespaced_event,
            run.namespace,
            field_selector=selector,
            limit=MAX_EVENTS,
            _request_timeout=timeout,
        )
        items = _items(json.loads(data))
    except UnreadableError as error:
        return Part(note=f"Unknown: {error}.")
    except (ValueError, AttributeError, RecursionError):
        return Part(note="Unknown: the API server's answer is not a list of events.")
    events = sorted((_event(item) for item in items), key=lambda event: event.time, reverse=True)
    return Part(items=events[:MAX_ITEMS], note="" if events else "The cluster has none any more.")


def log_names(status: dict[str, Any]) -> Part[str]:
    """Of the current attempt: pods of earlier ones are deleted."""
    attempt, nodes = status.get("attempt") or 0, status.get("nodes") or 0
    if not attempt or not nodes:
        return Part(note="No attempt has started yet.")
    note = f"The first {MAX_ITEMS} of {nodes} nodes." if nodes > MAX_ITEMS else ""
    return Part(items=[f"{attempt}-{node}" for node in range(min(nodes, MAX_ITEMS))], note=note)


def read_log(api: "CoreV1Api", run: RunSummary, name: str, timeout: Timeout) -> LogTail:
    """The newest lines of the pod of one node."""
    pod = f"{run.name}-{name}"
    try:
        data = _get(
            "dashboard.readLogs",
            api.read_namespaced_pod_log,
            pod,
            run.namespace,
            container=CONTAINER,
            tail_lines=MAX_LOG_LINES,
            _request_timeout=timeout,
        )
    except UnreadableError as error:
        return LogTail(name=name, note=f"The log of pod {pod} is unknown: {error}.")
    text, _ = printable(data[-MAX_LOG_BYTES:])
    return LogTail(name=name, text=text, note=f"The newest lines of pod {pod}.")


def serve_command(run: RunSummary, wire: dict[str, Any]) -> str:
    """What serves the run's last model; the app is the reader's choice for other than text."""
    claim = ((wire.get("spec") or {}).get("storage") or {}).get("claimName")
    values = f"run={run.name}" + (f",claimName={claim}" if claim else "")
    command = ["helm", "install", run.name, "charts/serving", "--namespace", run.namespace]
    return shlex.join([*command, "--set", values])


def _items(answer: Any) -> list[dict[str, Any]]:
    """The items of a list from the API server, with texts cut."""
    return [bounded(item, MAX_TEXT) for item in answer.get("items") or [] if isinstance(item, dict)]


def _event(item: dict[str, Any]) -> RunEvent:
    series = item.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        item.get("lastTimestamp"),
        item.get("eventTime"),
        (item.get("metadata") or {}).get("creationTimestamp"),
    )
    count = series.get("count") or item.get("count") or 1
    return RunEvent(
        time=str(next((time for time in times if time), "")),
        type=str(item.get("type") or ""),
        reason=str(item.get("reason") or ""),
        message=str(item.get("message") or ""),
        count=count if isinstance(count, int) else 1,
    )


def _get(setting: str, call: Callable[..., Any], *path: str, **options: Any) -> bytes:
    """The body of an answer, not parsed by the client. Raises UnreadableError.

    setting: the chart's value that gives the right to it.
    """
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    try:
        response = call(*path, _preload_content=False, **options)
        try:
            data = response.read(MAX_BYTES + 1)
        finally:
            response.release_conn()
    except ApiException as error:
        message = f"the cluster says {error.status} {error.reason}"
        raise UnreadableError(message, setting if error.status == FORBIDDEN else "") from None
    except (HTTPError, OSError) as error:
        cause = str(getattr(error, "reason", error)).rpartition(": ")[2]
        raise UnreadableError(f"the cluster can't be reached: {cause}") from None
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"the answer is larger than {MAX_BYTES >> 20} MiB")
    return bytes(data)

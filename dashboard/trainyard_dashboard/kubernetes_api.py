"""Data source: runs and studies of a Kubernetes cluster, read through its API."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainyard_api.base import validation_message
from trainyard_api.run import GROUP, PLURAL, VERSION
from trainyard_api.study import STUDY_PLURAL, ScalingStudy
from trainyard_dashboard.catalog import DataSourceError, RunSummary, parse_study
from trainyard_dashboard.history import Known, RunHistory
from trainyard_dashboard.kubernetes_run import log_names, read_events, read_log, serve_command
from trainyard_dashboard.run_details import LogTail, RunDetails, add_from_status
from trainyard_dashboard.usage import RunUsage

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api, CustomObjectsApi

TIMEOUT = (5, 10)  # seconds to connect, and between two reads
PAGE_SIZE = 250
MAX_OBJECTS = 1000
NOT_FOUND = 404


class KubernetesAPI:
    """The cluster that this process runs in, or the kubeconfig's."""

    def __init__(self, context: str | None, namespace: str) -> None:
        """Create a client, without connecting yet.

        Args:
            context: the kubeconfig's context; None is the current one.
            namespace: the only namespace to list; empty lists all.
        """
        self.label = f"the cluster{f' of context {context}' if context else ''}"
        self._context = context
        self._namespace = namespace
        self._api: CustomObjectsApi | None = None

    def runs(self) -> tuple[list[RunSummary], list[str]]:
        objects, problems = self._list(PLURAL)
        runs = []
        for item in objects:
            try:
                runs.append(RunSummary.from_wire(item, "cluster"))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                problems.append(f"a TrainingRun of {self.label} can't be read: {str(error)[:200]}")
        return runs, problems

    def history(
        self, run: RunSummary, metrics: Sequence[str], known: Known | None = None
    ) -> RunHistory:
        return RunHistory()  # a status has the latest values only; the curves are in Prometheus

    def usage(self, run: RunSummary) -> RunUsage | None:
        return None  # nor are its agents in reach: each rank's figures are in Prometheus

    def trace(self, run: RunSummary) -> Path | None:
        return None  # it is on the run's volume

    def details(self, run: RunSummary) -> RunDetails:
        with self._errors("to get", f"TrainingRun {run.name}"):
            wire: Any = self._connect().get_namespaced_custom_object(
                GROUP, VERSION, run.namespace, PLURAL, run.name, _request_timeout=TIMEOUT
            )
        try:
            details = RunDetails.of(run, wire)
        except (ValueError, AttributeError, TypeError) as error:
            message = f"TrainingRun {run.name} can't be read: {str(error)[:200]}"
            raise DataSourceError(message) from None
        add_from_status(details)
        details.traces.items = [run.profile] if run.profile else []
        for part in details.parts():
            what = "What its status names" if part.items else "Unknown"
            part.note = f"{what}: the rest is on the run's volume, which the dashboard can't read."
        details.events = read_events(self._core(), run, TIMEOUT)
        details.logs = log_names(details.status)
        details.serve = serve_command(run, wire) if details.status.get("model") else ""
        return details

    def log(self, run: RunSummary, name: str) -> LogTail:
        return read_log(self._core(), run, name, TIMEOUT)

    def studies(self) -> tuple[list[tuple[str, ScalingStudy]], list[str]]:
        objects, problems = self._list(STUDY_PLURAL)
        studies = []
        for item in objects:
            try:
                study = parse_study(json.dumps(item))
            except ValidationError as error:
                name = (item.get("metadata") or {}).get("name", "?")
                message = validation_message(error)[:300]
                problems.append(f"ScalingStudy {name} can't be read: {message}")
            else:
                studies.append((f"cluster/{study.namespace}/{study.name}", study))
        return studies, problems

    def _list(self, plural: str) -> tuple[list[dict[str, Any]], list[str]]:
        """All objects of a kind, page by page. Raises DataSourceError."""
        objects: list[dict[str, Any]] = []
        problems: list[str] = []
        token = None
        with self._errors("to list", plural):
            api = self._connect()
            while True:
                options: dict[str, Any] = {"limit": PAGE_SIZE, "_request_timeout": TIMEOUT}
                if token:
                    options["_continue"] = token
                page: Any
                if self._namespace:
                    page = api.list_namespaced_custom_object(
                        GROUP, VERSION, self._namespace, plural, **options
                    )
                else:
                    page = api.list_cluster_custom_object(GROUP, VERSION, plural, **options)
                objects += page["items"]
                token = page["metadata"].get("continue")
                if not token:
                    break
                if len(objects) >= MAX_OBJECTS:
                    problems.append(f"{self.label} has more than {len(objects)} {plural}")
                    break
        return objects, problems

    @contextmanager
    def _errors(self, action: str, what: str) -> Iterator[None]:
        """Raises DataSourceError for the client's errors."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except ApiException as error:
            if error.status == NOT_FOUND:
                hint = ": install charts/operator" if action == "to list" else " (any more)"
                raise DataSourceError(f"{self.label} has no {what}{hint}") from None
            message = f"{self.label} refuses {action} {what}: {error.status} {error.reason}"
            raise DataSourceError(message) from None
        except (HTTPError, OSError) as error:
            cause = str(getattr(error, "reason", error)).rpartition(": ")[2]
            raise DataSourceError(f"{self.label} can't be reached: {cause}") from None

    def _core(self) -> "CoreV1Api":
        from kubernetes.client import CoreV1Api

        return CoreV1Api(self._connect().api_client)

    def _connect(self) -> "CustomObjectsApi":
        """Raises DataSourceError if no cluster is configured."""
        from kubernetes import config
        from kubernetes.client import ApiClient, Configuration, CustomObjectsApi

        if self._api is None:
            configuration = Configuration()
            try:
                try:
                    config.load_incluster_config(  # type: ignore[no-untyped-call]
                        client_configuration=configuration
                    )
                except config.ConfigException:
                    config.load_kube_config(  # type: ignore[no-untyped-call]
                        context=self._context, client_configuration=configuration
                    )
            except config.ConfigException as error:
                raise DataSourceError(
                    f"no cluster is configured: {error}; set KUBECONFIG, or omit --cluster"
                ) from None
            configuration.retries = False
            self._api = CustomObjectsApi(ApiClient(configuration))
        return self._api

"""Runs and studies of a Kubernetes cluster, through its API: read only."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from trainyard_api.base import validation_message
from trainyard_api.run import GROUP, PLURAL, VERSION
from trainyard_api.study import STUDY_PLURAL, ScalingStudy
from trainyard_dashboard.model import RunHistory, RunRow, SourceError, run_row

if TYPE_CHECKING:
    from kubernetes.client import CustomObjectsApi

TIMEOUT = (5, 10)  # seconds, to connect and between two pieces of the answer
PAGE = 250
MAX_OBJECTS = 1000
NOT_FOUND = 404


class ClusterSource:
    """The cluster this process runs in, or that of a kubeconfig."""

    def __init__(self, context: str | None, namespace: str) -> None:
        self.where = f"the cluster{f' of context {context}' if context else ''}"
        self._context = context
        self._namespace = namespace
        self._api: CustomObjectsApi | None = None

    def runs(self) -> tuple[list[RunRow], list[str]]:
        objects, problems = self._list(PLURAL)
        rows = []
        for item in objects:
            try:
                rows.append(run_row(item, "cluster"))
            except (ValueError, KeyError, AttributeError, TypeError) as error:
                problems.append(f"a TrainingRun of {self.where} can't be read: {str(error)[:200]}")
        return rows, problems

    def history(self, run: RunRow, metrics: Sequence[str]) -> RunHistory:
        return RunHistory()  # a status has the newest figures only; Prometheus has the curves

    def studies(self) -> tuple[list[tuple[str, ScalingStudy]], list[str]]:
        objects, problems = self._list(STUDY_PLURAL)
        found = []
        for item in objects:
            try:
                study = ScalingStudy.model_validate_json(_json(item))
            except ValidationError as error:
                name = (item.get("metadata") or {}).get("name", "?")
                problems.append(
                    f"ScalingStudy {name} can't be read: {validation_message(error)[:300]}"
                )
            else:
                found.append((f"cluster/{study.namespace}/{study.name}", study))
        return found, problems

    def _list(self, plural: str) -> tuple[list[dict[str, Any]], list[str]]:
        """All objects of a kind, page by page. Raises SourceError."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        found: list[dict[str, Any]] = []
        token = None
        try:
            api = self._connect()
            while True:
                options: dict[str, Any] = {"limit": PAGE, "_request_timeout": TIMEOUT}
                if token:
                    options["_continue"] = token
                answer: Any
                if self._namespace:
                    answer = api.list_namespaced_custom_object(
                        GROUP, VERSION, self._namespace, plural, **options
                    )
                else:
                    answer = api.list_cluster_custom_object(GROUP, VERSION, plural, **options)
                found += answer["items"]
                token = answer["metadata"].get("continue")
                if not token:
                    return found, []
                if len(found) >= MAX_OBJECTS:
                    return found, [f"{self.where} has more than {len(found)} {plural}"]
        except ApiException as error:
            if error.status == NOT_FOUND:
                raise SourceError(
                    f"{self.where} has no {plural}: install charts/operator"
                ) from None
            raise SourceError(
                f"{self.where} refuses to list {plural}: {error.status} {error.reason}"
            ) from None
        except (HTTPError, OSError) as error:
            why = str(getattr(error, "reason", error)).rpartition(": ")[2]
            raise SourceError(f"{self.where} can't be reached: {why}") from None

    def _connect(self) -> "CustomObjectsApi":
        """Raises SourceError when nothing says where the cluster is."""
        from kubernetes import config
        from kubernetes.client import ApiClient, Configuration, CustomObjectsApi

        if self._api is None:
            settings = Configuration()
            try:
                try:
                    config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
                except config.ConfigException:
                    config.load_kube_config(  # type: ignore[no-untyped-call]
                        context=self._context, client_configuration=settings
                    )
            except config.ConfigException as error:
                raise SourceError(
                    f"no cluster is known: {error}; set KUBECONFIG, or leave --cluster out"
                ) from None
            settings.retries = False
            self._api = CustomObjectsApi(ApiClient(settings))
        return self._api


def _json(item: dict[str, Any]) -> str:
    """As text: so the models take "2026-01-01T00:00:00Z" for a time, and "2" for no number."""
    return json.dumps(item)

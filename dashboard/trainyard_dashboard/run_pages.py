"""The endpoints behind the table of runs and the page of each run."""

from typing import Annotated

from fastapi import FastAPI, Query, Request, Response
from starlette.responses import FileResponse

from trainyard_dashboard.catalog import Catalog, DataSourceError
from trainyard_dashboard.responses import json_response
from trainyard_dashboard.run_details import LogTail, RunDetails
from trainyard_dashboard.run_list import RunChanges, RunList
from trainyard_serving.errors import ApiError

RunId = Annotated[str, Query(max_length=2000)]
LogName = Annotated[str, Query(pattern=r"^\d{1,9}-\d{1,5}$", description="ATTEMPT-NODE")]
Since = Annotated[str, Query(max_length=100, description="The version of an earlier answer.")]


class RunPages:
    """They block on files or servers, and so run in threads."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._list = RunList()

    def add_routes(self, app: FastAPI) -> None:
        """Add the endpoints to the app."""
        app.add_api_route("/api/runs", self.runs, response_model=RunChanges)
        app.add_api_route("/api/run", self.run, response_model=RunDetails)
        app.add_api_route("/api/log", self.log, response_model=LogTail)
        app.add_api_route("/api/trace", self.trace, response_class=FileResponse)

    def runs(self, request: Request, since: Since = "") -> Response:
        """All runs, or with `since` what has changed after that version."""
        runs, problems = self._catalog.runs()
        return json_response(request, self._list.changes(runs, problems, since), compact=True)

    def run(self, request: Request, run: RunId) -> Response:
        """All that is known of one run."""
        try:
            details = self._catalog.details(run)
        except DataSourceError as error:
            raise ApiError(502, str(error), "unreadable_run") from None
        if details is None:
            raise _no_run(run)
        return json_response(request, details)

    def log(self, request: Request, run: RunId, name: LogName) -> Response:
        """The newest lines of the output of one node in one attempt."""
        try:
            found = self._catalog.log(run, name)
        except DataSourceError as error:
            raise ApiError(502, str(error), "no_log") from None
        if found is None:
            raise _no_run(run)
        return json_response(request, found)

    def trace(self, run: RunId, path: Annotated[str, Query(max_length=200)] = "") -> FileResponse:
        """A trace of a run of this machine, by default its newest, which Perfetto opens."""
        try:
            file = self._catalog.trace(run, path or None)
        except DataSourceError as error:
            raise ApiError(409, str(error), "no_trace") from None
        if file is None:
            raise ApiError(404, f"run {run} has no trace on this machine", "no_trace")
        name = f"{run.rpartition('/')[2]}-{file.parent.name}-{file.name}"
        return FileResponse(file, media_type="application/gzip", filename=name)


def _no_run(run: str) -> ApiError:
    return ApiError(404, f"run {run} does not exist (any more)", "no_run")

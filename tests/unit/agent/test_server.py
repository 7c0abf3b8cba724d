"""The agent's port: a script posts with its token, everybody reads."""

import json
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.patience import SECONDS
from trainyard_agent.hangs import RankState, from_wire
from trainyard_agent.report import Report
from trainyard_agent.server import MAX_BODY, ReportServer

STATUS = json.dumps({"trainerStatus": {"progressPercentage": 50}}).encode()


@pytest.fixture
def server() -> Iterator[ReportServer]:
    found = ReportServer(Report("mine", 1), lambda: 2)
    found.serve("127.0.0.1", 0)
    yield found
    found.close()


def ask(
    server: ReportServer, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, str]:
    url = f"http://127.0.0.1:{server.port}{path}"
    request = urllib.request.Request(url, data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_script_finds_where_to_post_in_its_environment(
    server: ReportServer, tmp_path: Path
) -> None:
    variables = server.variables(tmp_path)
    token = Path(variables["KUBEFLOW_TRAINER_SERVER_TOKEN"])
    assert token.stat().st_mode & 0o777 == 0o600
    headers = {"Authorization": f"Bearer {token.read_text()}"}
    url = variables["KUBEFLOW_TRAINER_SERVER_URL"]
    request = urllib.request.Request(url, data=STATUS, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
    code, text = ask(server, "/progress")
    assert code == 200
    document = json.loads(text)
    assert (document["run"], document["progressPercent"], document["worldSize"]) == ("mine", 50, 2)
    assert ask(server, "/metrics")[0] == 200


def test_a_proxy_does_not_get_the_status(
    server: ReportServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "example.com")
    variables = server.variables(tmp_path)
    assert variables["NO_PROXY"] == "example.com,127.0.0.1"
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    token = Path(variables["KUBEFLOW_TRAINER_SERVER_TOKEN"]).read_text()
    headers = {"Authorization": f"Bearer {token}"}
    url = variables["KUBEFLOW_TRAINER_SERVER_URL"]
    request = urllib.request.Request(url, data=STATUS, headers=headers)
    with urllib.request.build_opener().open(request, timeout=10) as answer:
        assert answer.status == 200


def test_before_the_first_status_there_is_no_progress(server: ReportServer) -> None:
    assert ask(server, "/progress") == (404, "nothing has been reported yet")
    assert ask(server, "/metrics")[1].startswith("# HELP trainyard_attempt Number")


@pytest.mark.parametrize("token", ["", "Bearer ", "Bearer x", "Bearer é"])
def test_a_wrong_token_changes_nothing(server: ReportServer, token: str) -> None:
    assert ask(server, "/status", STATUS, Authorization=token)[0] == 401
    assert server.report.document() is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 422),
        (b"{", 422),
        (b"\xff\xfe", 422),
        (b"[" * 30_000, 422),
        (b'{"trainerStatus": []}', 422),
        (b" " * (MAX_BODY + 1), 413),
    ],
)
def test_an_invalid_status_is_refused_and_the_server_survives(
    server: ReportServer, body: bytes, code: int
) -> None:
    headers = {"Authorization": f"Bearer {server.token}"}
    assert ask(server, "/status", body, **headers)[0] == code
    assert ask(server, "/status", STATUS, **headers)[0] == 200


def test_a_port_in_use_is_a_warning(
    server: ReportServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    other = ReportServer(Report("other", 1), lambda: 0)
    other.serve("127.0.0.1", server.port)
    assert "the run continues without progress" in capsys.readouterr().err
    assert other.variables(tmp_path) == {}
    other.close()


def test_the_last_report_is_the_result_unless_the_script_wrote_one(
    server: ReportServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = tmp_path / "result"
    monkeypatch.setenv("TRAINYARD_RESULT_FILE", str(result))
    server.write_result()
    assert not result.exists(), "nothing was reported"
    server.report.update(json.loads(STATUS), 1)
    server.write_result()
    assert json.loads(result.read_text())["phase"] == "finished"
    result.write_text("mine")
    server.write_result()
    assert result.read_text() == "mine"


def test_the_ranks_of_a_node_are_served() -> None:
    server = ReportServer(Report("mine", 1), lambda: 2, lambda: [RankState(1, "h", 7)])
    server.serve("127.0.0.1", 0)
    try:
        code, text = ask(server, "/ranks")
        assert (code, from_wire(json.loads(text))) == (200, [RankState(1, "h", 7)])
    finally:
        server.close()


def test_a_client_that_has_gone_leaves_no_traceback(
    server: ReportServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    errors: list[object] = []
    http_server = server._server
    assert http_server
    monkeypatch.setattr(http_server, "handle_error", lambda *args: errors.append(args))
    monkeypatch.setattr(http_server, "shutdown_request", lambda _: ended.set())
    client = socket.create_connection(("127.0.0.1", server.port))
    client.send(b"GET /progress")  # a part of a request, then a reset
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert ended.wait(SECONDS)
    assert errors == []

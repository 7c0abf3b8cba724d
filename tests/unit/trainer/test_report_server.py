"""The report while joining, training and after, and its size limit."""

import socket
import struct
import threading
import urllib.error
import urllib.request

import pytest

from tests.patience import SECONDS
from trainyard_api.job import TrainerJob
from trainyard_api.progress import ProgressReport
from trainyard_trainer.reporting.http_report import MAX_RESULT_BYTES, ReportServer, result_bytes


def reporter(port: int = 0) -> ReportServer:
    job = TrainerJob(run="r", recipe="char-gpt", run_dir="/x", report_port=port, attempt=3)
    return ReportServer(job, world_size=4)


def test_joining_before_anything_else() -> None:
    report = reporter().report()
    assert (report.phase, report.ranks_joined, report.world_size) == ("joining", 0, 4)
    assert report.attempt == 3
    assert report.step is None
    assert report.loss is None


def test_a_result_always_fits_and_stays_json() -> None:
    subject = reporter()
    subject.update(sample='"\n\\é' * 5000, message="x" * 9000, loss=1.5)
    data = result_bytes(subject.report())
    assert len(data) < MAX_RESULT_BYTES
    report = ProgressReport.model_validate_json(data)
    assert report.loss == 1.5


def test_a_short_sample_is_kept_whole() -> None:
    subject = reporter()
    subject.update(sample="def main():\n    pass\n")
    report = ProgressReport.model_validate_json(result_bytes(subject.report()))
    assert report.sample == "def main():\n    pass\n"


def test_readers_never_see_half_an_update(unused_port: int) -> None:
    subject = reporter()
    subject.serve(unused_port)
    stop = threading.Event()

    def write() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            subject.update(step=step, loss=float(step))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(50):
            with urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/progress") as response:
                report = ProgressReport.model_validate_json(response.read())
            assert report.step == report.loss
    finally:
        stop.set()
        writer.join()
        subject.close()


def test_other_paths_are_not_found(unused_port: int) -> None:
    subject = reporter()
    subject.serve(unused_port)
    try:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{unused_port}/")
    finally:
        subject.close()


def test_a_client_that_has_gone_leaves_no_traceback(
    unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = reporter()
    subject.serve(unused_port)
    ended = threading.Event()
    errors: list[object] = []
    http_server = subject._server
    assert http_server
    monkeypatch.setattr(http_server, "handle_error", lambda *args: errors.append(args))
    monkeypatch.setattr(http_server, "shutdown_request", lambda _: ended.set())
    client = socket.create_connection(("127.0.0.1", unused_port))
    client.send(b"GET /progress")  # a part of a request, then a reset
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    assert ended.wait(SECONDS)
    subject.close()
    assert errors == []

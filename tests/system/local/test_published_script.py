"""A script's models, served while it trains: each new one takes over, and no wrong one does."""

import threading
from collections import Counter
from typing import Any

import httpx

from tests import patience
from tests.patience import until
from tests.support.frameworks import SCRIPTS
from tests.support.serving.models import export_char_gpt
from tests.support.serving.swap_load import publish_copy
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_api.golden import GOLDEN
from trainyard_storage.checkpoints import digest, verify

REQUEST = {"prompt": "to ", "max_tokens": 4, "temperature": 0}
DAMAGED = 35


def test_a_script_s_models_are_swapped_without_a_failed_request_and_wrong_ones_refused(
    box: Any,
) -> None:
    base = box.path / "base"
    base.mkdir()
    export_char_gpt(base)
    words = [str(SCRIPTS / "published.py"), str(base), str(box.path)]
    training = box.start("run", box.manifest("mine", command=words))
    data = box.run_dir("mine") / "data"

    def published(step: int) -> str:
        """The digest of the model of that step, once it is there."""
        directory = data / MODELS / step_name(step)
        until(directory.exists, f"the model of step {step}")
        return digest(directory)

    first = published(10)
    assert GOLDEN in verify(data / MODELS / step_name(10)).files
    server = box.start("serve", "mine", "--port", "0", TRAINYARD_SERVING_POLL_SECONDS="0.1")
    url = next(line.split()[-1] for line in server.stdout if "web page" in line)

    answers: Counter[str] = Counter()
    failed: list[str] = []
    done = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=url, timeout=patience.SECONDS) as client:
            while not done.is_set():
                answer = client.post("/v1/completions", json=REQUEST)
                if answer.status_code != 200:
                    failed.append(answer.text)
                answers[answer.headers["x-trainyard-digest"]] += 1

    def ready() -> dict[str, Any]:
        return dict(httpx.get(f"{url}ready", timeout=patience.SECONDS).json())

    def answers_come_from(name: str) -> None:
        so_far = answers[name]
        until(lambda: answers[name] > so_far + 1, f"answers of {name}", lambda: f"{ready()}")

    client = threading.Thread(target=keep_asking)
    client.start()
    try:
        answers_come_from(first)
        (box.path / "2").touch()
        second = published(20)
        answers_come_from(second)
        (box.path / "3").touch()
        until(lambda: len(ready()["refused"]) == 1, "the wrong model is refused")
        assert "weights are missing" in ready()["refused"][0]
        publish_copy(data / MODELS / step_name(20), data, DAMAGED, "flipped byte")
        until(lambda: len(ready()["refused"]) == 2, "the damaged model is refused")
        answers_come_from(second)
        assert ready()["digest"] == second
        (box.path / "4").touch()
        fourth = published(40)
        answers_come_from(fourth)
    finally:
        done.set()
        client.join()
    assert failed == []
    assert answers.keys() == {first, second, fourth}
    code, output = box.end(training)
    assert code == 0, output
    status = box.status("mine")
    assert (status["phase"], status["model"]["digest"]) == ("Succeeded", fourth)

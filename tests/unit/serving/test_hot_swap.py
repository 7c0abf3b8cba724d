"""Twenty swaps under load, half of them to damaged models: every request gets a right answer."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.patience import until
from tests.support.serving.completions import text_of, write
from tests.support.serving.servers import serving
from tests.support.serving.swap_load import REQUIRE, publish_copy, swap_under_load
from tests.unit.serving.trained_gpt import export_trained_gpt
from trainyard_serving.generate.language_model import LanguageModel
from trainyard_serving.model_store.verified import describe_plain

KEY = "sk-right"
REQUEST = {"prompt": "to be", "max_tokens": 8, "temperature": 0}


def export(directory: Path, seed: int) -> str:
    """Export a model; returns its greedy answer."""
    directory.mkdir()
    export_trained_gpt(directory, seed, n_layer=1)
    loaded = LanguageModel.load(describe_plain(directory), "cpu")
    return text_of(write(loaded, loaded.encode("to be"), max_tokens=8, temperature=0))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str]]:
    """Two models that answer differently."""
    parent = tmp_path_factory.mktemp("models")
    made = [(parent / str(seed), export(parent / str(seed), seed)) for seed in (1, 2)]
    assert made[0][1] != made[1][1]
    return made


async def ask(client: httpx.AsyncClient) -> httpx.Response:
    return await client.post("/v1/completions", json=REQUEST)


def text_of_response(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["text"])


def test_swaps_fail_no_request_and_every_answer_names_its_model(
    models: list[tuple[Path, str]], tmp_path: Path
) -> None:
    with serving(run_dir=tmp_path, poll_seconds=0.02, max_queue=64, require=REQUIRE) as client:
        base = str(client.base_url)
        swaps = asyncio.run(
            swap_under_load(
                base, tmp_path, models, ask, text_of_response, num_swaps=20, num_clients=4
            )
        )
    assert swaps.failed == []
    assert swaps.wrong == []
    assert swaps.refused == len(swaps.damaged) == 10
    assert not swaps.answers.keys() & set(swaps.damaged)
    assert len(swaps.answers) == 11  # the first model and ten newer ones, each of which answered


def test_rollback_by_request(models: list[tuple[Path, str]], tmp_path: Path) -> None:
    headers = {"authorization": f"Bearer {KEY}"}
    with serving(run_dir=tmp_path, poll_seconds=0.02, admin_api_key=KEY) as client:

        def serves(name: str) -> bool:
            return bool(client.get("/health").json().get("digest") == name)

        first = publish_copy(models[0][0], tmp_path, 1)
        until(lambda: serves(first))
        assert client.post("/admin/rollback").status_code == 401
        assert client.post("/admin/rollback", headers=headers).status_code == 409
        second = publish_copy(models[1][0], tmp_path, 2)
        until(lambda: serves(second))
        before = client.post("/v1/completions", json=REQUEST, headers=headers)
        back = client.post("/admin/rollback", headers=headers)
        after = client.post("/v1/completions", json=REQUEST, headers=headers)
        assert (text_of_response(before), text_of_response(after)) == (models[1][1], models[0][1])
        digests = [r.headers["x-trainyard-digest"] for r in (before, back, after)]
        assert digests == [second, first, first]
        assert back.json() == {"run": "shakespeare", "step": 1, "digest": first}
        metrics = client.get("/metrics").text
        info = f'trainyard_serving_model_info{{digest="{first}",run="shakespeare",step="1"}} 1.0'
        assert info in metrics
        assert second not in metrics
        assert 'trainyard_serving_model_swaps_total{result="rolled_back"} 1.0' in metrics


def test_without_an_admins_key_there_is_no_rollback(client: httpx.Client) -> None:
    assert client.post("/admin/rollback").status_code == 404

"""The embedding server follows a run: newer models take over, damaged ones do not."""

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.patience import until
from tests.support.serving.embed_server import embed_server, write_encoder
from tests.support.serving.models import write_manifest
from tests.support.serving.servers import running
from tests.support.serving.swap_load import swap_under_load
from tests.unit.serving.test_embedder import hidden_states
from trainyard_api.checkpoint import MODELS, step_name
from trainyard_serving.embed.app import create_embed_app
from trainyard_serving.embed.settings import EmbedSettings

KEY = "sk-right"
TEXT = "word1 word2 word3"


def signs(numbers: Any) -> str:
    """By these a test recognises a model, whatever rounding does to its embeddings."""
    return "".join("+" if number > 0 else "-" for number in numbers)


def test_swaps_under_load_fail_no_request(tmp_path: Path) -> None:
    """Three to newer models; one with a flipped byte, one cut and one with NaN are refused."""
    models = []
    for seed in (1, 2):
        directory = tmp_path / str(seed)
        write_encoder(directory, seed=seed)
        models.append((directory, signs(hidden_states(directory, TEXT).mean(0))))
    assert models[0][1] != models[1][1]

    async def ask(client: httpx.AsyncClient) -> httpx.Response:
        return await client.post("/embed", json={"inputs": TEXT})

    run = tmp_path / "run"
    run.mkdir()
    settings = EmbedSettings(run_dir=str(run), threads=1, poll_seconds=0.02)
    with running(create_embed_app(settings)) as client:
        swaps = asyncio.run(
            swap_under_load(
                str(client.base_url),
                run,
                models,
                ask,
                lambda response: signs(response.json()[0]),
                num_swaps=6,
                num_clients=3,
            )
        )
    assert swaps.failed == []
    assert swaps.wrong == []
    assert swaps.refused == len(swaps.damaged) == 3
    assert len(swaps.answers) == 4


def publish(run: Path, step: int) -> None:
    """Publish a model as a trainer does: beside, then renamed."""
    hidden = run / MODELS / f".tmp-{step}"
    write_encoder(hidden, seed=step)
    write_manifest(hidden, step=step, created=f"2026-01-{step:02}T00:00:00Z")
    hidden.rename(run / MODELS / step_name(step))


def test_a_newer_model_takes_over_and_can_be_rolled_back(tmp_path: Path) -> None:
    publish(tmp_path, 1)
    with embed_server(run_dir=tmp_path, admin_api_key=KEY) as client:
        before = client.post("/embed", json={"inputs": TEXT})
        publish(tmp_path, 2)
        until(lambda: client.get("/health").json()["step"] == 2)
        after = client.post("/embed", json={"inputs": TEXT})
        assert before.json() != after.json()
        back = client.post("/admin/rollback", headers={"x-api-key": KEY})
        assert back.json()["digest"] == before.headers["x-trainyard-digest"]
        again = client.post("/embed", json={"inputs": TEXT})
        assert again.json() == before.json()
        assert again.headers["x-trainyard-digest"] == before.headers["x-trainyard-digest"]

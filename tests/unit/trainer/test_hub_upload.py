"""An exported model is uploaded completely, or the error is one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import patience
from tests.unit.trainer.hub_server import serving
from trainyard_trainer.recipes.hugging_face import UploadError, upload_model

# A process of its own: the library reads HF_ENDPOINT when it is imported.
PROGRAM = """
import sys
from pathlib import Path
from trainyard_trainer.errors import UserError
from trainyard_trainer.recipes.hugging_face import upload_model
try:
    print(upload_model(Path(sys.argv[1]), "me/model", private=True))
except UserError as error:
    print("refused:", error)
"""


def upload(directory: Path, endpoint: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory)],
        env=os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret"},
        capture_output=True,
        text=True,
        timeout=patience.SECONDS,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "model.safetensors").write_bytes(bytes(range(256)))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    return tmp_path


def test_every_file_of_the_model_arrives(model: Path) -> None:
    for ours in ("manifest.json", "golden.json"):
        (model / ours).write_text("{}")
    with serving() as hub:
        assert upload(model, hub.url) == f"{hub.url}/me/model"
    assert hub.files == {
        "model.safetensors": bytes(range(256)),
        "adapter/adapter_config.json": b"{}",
    }
    assert hub.tokens == {"Bearer hf_secret"}
    assert hub.created["visibility"] == "private"


def test_a_refusal_is_one_line(model: Path) -> None:
    with serving(status=403) as hub:
        said = upload(model, hub.url)
    assert said.startswith("refused: config.hub_model_id: me/model: 403 Forbidden")
    assert "\n" not in said
    assert "hf_secret" not in said


def test_no_token(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(UploadError, match="set HF_TOKEN to a token with write access to me/model"):
        upload_model(model, "me/model", private=True)

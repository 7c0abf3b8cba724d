"""`deterministic: true` holds in the whole run, and names what can't be deterministic."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from trainyard_api.job import TrainerJob
from trainyard_trainer.deterministic import WORKSPACE, use_deterministic_algorithms
from trainyard_trainer.distributed.process_group import leave
from trainyard_trainer.errors import ConfigError
from trainyard_trainer.recipes.char_gpt import CharGPT
from trainyard_trainer.worker import work


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """These settings are the process's: later tests have the usual ones."""
    monkeypatch.setenv(WORKSPACE, "")
    monkeypatch.delenv(WORKSPACE)
    cudnn = torch.backends.cudnn.flags()
    with cudnn:
        yield
    leave()  # the process group, with which a rank that fails ends
    torch.set_deterministic_debug_mode("default")
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    torch.backends.cuda.enable_cudnn_sdp(True)


def test_the_operation_without_a_deterministic_form_is_named(
    make_job: Callable[..., TrainerJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, settings = CharGPT.loss, list[Any]()

    def refused(self: CharGPT, *args: Any) -> torch.Tensor:
        cuda: Any = torch.backends.cuda
        settings.extend([os.environ[WORKSPACE], cuda.cudnn_sdp_enabled(), cuda.flash_sdp_enabled()])
        settings.extend([torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark])
        value = loss(self, *args)
        return value + torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2)).sum()

    monkeypatch.setattr(CharGPT, "loss", refused)
    with pytest.raises(ConfigError) as caught:
        work(make_job(deterministic=True, hang_timeout_seconds=0), None, 0)
    assert settings == [":4096:8", False, True, True, False]
    assert str(caught.value) == (
        "config.deterministic: put_, which this model uses, has no deterministic implementation on"
        " this device; set it to false, or train without that operation"
    )


def test_a_workspace_that_cublas_must_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG is :0:0, .* :4096:8 or :16:8"):
        use_deterministic_algorithms(False)
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setenv(WORKSPACE, ":16:8")
    use_deterministic_algorithms(False)
    assert torch.are_deterministic_algorithms_enabled()

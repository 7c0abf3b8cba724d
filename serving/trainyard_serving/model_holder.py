"""Loads the model beside the running server, and says why it is not there yet."""

import logging
import threading
from typing import TYPE_CHECKING

from trainyard_serving.model_store import ModelUnavailableError, find_model
from trainyard_serving.settings import GenerateSettings

if TYPE_CHECKING:  # importing torch takes seconds; the server must answer before that
    from trainyard_serving.language_model import LanguageModel

log = logging.getLogger(__name__)


class ModelHolder:
    """Holds the model served; a thread keeps looking for one until it is found and loaded."""

    def __init__(self, settings: GenerateSettings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="model-loader")
        self.model: LanguageModel | None = None
        self.reason = "the model is loading"  # why `model` is None, in one line

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the search; a load under way is finished first."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.is_set():
            try:
                self.model = self._load()
                return
            except ModelUnavailableError as error:
                reason = str(error)
            except Exception as error:
                log.exception("loading failed")
                reason = f"loading failed: {type(error).__name__}: {error}"
            if reason != self.reason:
                log.warning("%s; trying again every %g s", reason, self._settings.retry_seconds)
            self.reason = reason
            self._stop.wait(self._settings.retry_seconds)

    def _load(self) -> "LanguageModel":
        source = find_model(self._settings)
        for refused in source.refused:
            log.warning("refused: %s", refused)
        self.reason = f"the model of step {source.manifest.step} is loading"
        from trainyard_serving.language_model import LanguageModel

        model = LanguageModel.load(source, self._settings.device, self._settings.threads)
        log.info(
            "serving %s, step %d, %s", source.manifest.run, source.manifest.step, source.digest
        )
        return model

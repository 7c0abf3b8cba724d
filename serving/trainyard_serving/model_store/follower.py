"""Follows a location: a better or newer model is verified, loaded beside the current one, checked
and swapped.

    location.candidates() -> verify -> load -> check -> swap       (once every `poll_seconds`)

Requests in progress keep the model they started with, so a swap drops none. The previous model
stays loaded for `roll_back`. A model that fails one of these steps is refused and reported, and the
current model keeps answering.
"""

import gc
import logging
import math
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from trainyard_serving.concurrency import computing_thread
from trainyard_serving.errors import BadModelError, ModelUnavailableError
from trainyard_serving.metrics import Metrics
from trainyard_serving.model_store.locations import Candidate, ModelLocation
from trainyard_serving.model_store.verified import ServedModel, VerifiedModel
from trainyard_storage.checkpoints import InvalidCheckpointError

log = logging.getLogger(__name__)


class LoadedModel(Protocol):
    """A model in memory."""

    source: VerifiedModel
    details: dict[str, Any]  # additional fields of /health and /ready

    def check(self) -> None:
        """Answer the golden request. Raises BadModelError when the answer is wrong."""


M = TypeVar("M", bound=LoadedModel)


class Follower(Generic[M]):
    """Holds the current model, and a thread that looks for newer ones."""

    def __init__(
        self,
        location: ModelLocation,
        load: Callable[[VerifiedModel], M],
        poll_seconds: float,
        metrics: Metrics,
    ) -> None:
        self._location = location
        self._load = load
        self._poll_seconds = poll_seconds
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread = computing_thread(self._follow, "model-follower")
        self._swapping = threading.Lock()
        self._current: tuple[Candidate, M] | None = None
        self._previous: tuple[Candidate, M] | None = None
        self._refused: dict[str, str] = {}  # stamp of a candidate -> reason
        self._skipped: set[str] = set()  # stamps of candidates neither newer nor better
        self._rolled_back: set[str] = set()  # digests
        self._newest: datetime | None = None  # `created` of the newest model served so far
        self._lowest = math.inf  # `loss` of the best one
        self._reason = "the model is loading"

    @property
    def model(self) -> M | None:
        """The model that new requests use."""
        current = self._current
        return current[1] if current else None

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        return self._current is not None

    @property
    def served(self) -> ServedModel | None:
        return model.source.served if (model := self.model) else None

    @property
    def details(self) -> dict[str, Any]:
        return model.details if (model := self.model) else {}

    @property
    def reason(self) -> str:
        return self._reason

    @property
    def refused(self) -> list[str]:
        return list(self._refused.values())

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; a load in progress finishes first."""
        self._stop.set()
        self._thread.join()
        gc.unfreeze()

    def roll_back(self) -> ServedModel | None:
        """Serve the previous model again, and refuse the current one from now on.

        Returns the model now served, or None when there is no previous model.
        """
        with self._swapping:
            if self._current is None or self._previous is None:
                return None
            candidate, model = self._current
            self._current, self._previous = self._previous, None
            self._rolled_back.add(model.source.digest)
            self._refuse(candidate, _rolled_back_reason(candidate), "rolled_back")
            served = self._current[1].source.served
        log.warning("rolled back from %s to %s", model.source.digest, served.digest)
        return served

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._poll()
            except ModelUnavailableError as error:
                self._set_reason(str(error))
            except Exception as error:  # such as too little memory: the next attempt may succeed
                log.exception("looking for a model failed")
                self._set_reason(f"loading failed: {type(error).__name__}: {error}")
            self._stop.wait(self._poll_seconds)

    def _set_reason(self, reason: str) -> None:
        if reason != self._reason:
            log.warning("%s; looking again every %g s", reason, self._poll_seconds)
        self._reason = reason

    def _poll(self) -> None:
        """Serve the first candidate that is valid, unless it is served or was replaced before.

        Raises ModelUnavailableError.
        """
        candidates = self._location.candidates()
        known = {candidate.stamp for candidate in candidates}
        for stamp in self._refused.keys() - known:  # removed or repaired: nothing to report
            self._refused.pop(stamp, None)
        self._skipped &= known
        unreadable = []
        for candidate in candidates:
            if self._current and candidate.stamp == self._current[0].stamp:
                return
            try:
                seen = candidate.stamp in self._refused or candidate.stamp in self._skipped
                if not seen and self._try(candidate):
                    return
            except ModelUnavailableError as error:  # it may be readable next time
                unreadable.append(str(error))
        if self._current is None:
            raise ModelUnavailableError(
                "no model verifies: " + "; ".join(self.refused + unreadable)
            )

    def _try(self, candidate: Candidate) -> bool:
        """Make a candidate the current model. False if it is not, so that older ones are tried."""
        # A reference to the model itself would keep it in memory.
        before = self._previous and (self._previous[0], self._previous[1].source.digest)
        try:
            source = candidate.fetch()
            if self._is_served(candidate, source):
                return True
            if source.digest in self._rolled_back:  # the same files, touched or copied
                raise BadModelError(_rolled_back_reason(candidate))
            older = self._newest is not None and source.created <= self._newest
            if older and not candidate.alone and not candidate.loss < self._lowest:
                self._skipped.add(candidate.stamp)  # others were removed or rolled back
                return False
            if self._current is None:
                self._reason = f"the model {candidate.name} is loading"
            # At most two models in memory; three while one loads and requests to an older one end.
            with self._swapping:
                self._previous = None
            model = self._load(source)
            model.check()
        except (InvalidCheckpointError, BadModelError) as error:
            self._refuse(candidate, str(error), "refused")
            self._reload_previous(before)
            return False
        except BaseException:
            self._reload_previous(before)
            raise
        with self._swapping:
            self._previous, self._current = self._current, (candidate, model)
            self._newest = max(source.created, self._newest or source.created)
            self._lowest = min(candidate.loss, self._lowest)
            first = self._previous is None
        if first:
            # Libraries hold half a million objects: scanning them for garbage would sometimes delay
            # every request by a quarter of a second. Models are freed without it.
            gc.freeze()
        self._metrics.model_swaps.labels("loaded").inc()
        log.info("serving %s, %s", candidate.name, source.digest)
        return True

    def _is_served(self, candidate: Candidate, source: VerifiedModel) -> bool:
        """Whether `source` is the current model: its files were touched or copied, not changed."""
        with self._swapping:
            if self._current is None or self._current[1].source.digest != source.digest:
                return False
            self._current = (candidate, self._current[1])
        return True

    def _reload_previous(self, before: tuple[Candidate, str] | None) -> None:
        """Load the model for `roll_back` again, which was unloaded for a model then refused."""
        if before is None or self._previous is not None:
            return
        candidate, digest = before
        if self._current and self._current[1].source.digest == digest:
            return  # it was rolled back to meanwhile
        try:
            source = candidate.fetch()
            model = self._load(source) if source.digest == digest else None
        except Exception as error:
            log.warning("%s can no longer be rolled back to: %s", candidate.name, error)
            return
        if model is not None:
            with self._swapping:
                self._previous = (candidate, model)

    def _refuse(self, candidate: Candidate, reason: str, result: str) -> None:
        self._metrics.model_swaps.labels(result).inc()
        log.warning("refused: %s", reason)
        self._refused[candidate.stamp] = reason


def _rolled_back_reason(candidate: Candidate) -> str:
    return f"{candidate.name}: rolled back by request"

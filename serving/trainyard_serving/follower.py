"""Follows a place: a newer model is verified, loaded beside the old one, checked, and swapped in.

    place.candidates() -> verify -> load -> check -> swap          (once every `poll_seconds`)

Requests under way keep the model they began with, so a swap drops none. The model before the
current one stays loaded for `roll_back`. What fails on the way is refused and reported; the old
model goes on answering.
"""

import gc
import logging
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from trainyard_serving.backend import Served
from trainyard_serving.errors import BadModelError, ModelUnavailableError
from trainyard_serving.metrics import Metrics
from trainyard_serving.places import Candidate, Place
from trainyard_serving.threads import computing_thread
from trainyard_serving.verified import VerifiedModel
from trainyard_storage.checkpoints import InvalidCheckpointError

log = logging.getLogger(__name__)


class Loaded(Protocol):
    """A model in memory."""

    source: VerifiedModel
    details: dict[str, Any]  # what /health and /ready tell of it, beside its name

    def check(self) -> None:
        """Answer a golden request. Raises BadModelError when the answer is not right."""


M = TypeVar("M", bound=Loaded)


class Follower(Generic[M]):
    """Holds the model served, and a thread that looks for newer ones."""

    def __init__(
        self,
        place: Place,
        load: Callable[[VerifiedModel], M],
        poll_seconds: float,
        metrics: Metrics,
    ) -> None:
        self._place = place
        self._load = load
        self._poll_seconds = poll_seconds
        self._metrics = metrics
        self._stop = threading.Event()
        self._thread = computing_thread(self._follow, "model-follower")
        self._swapping = threading.Lock()
        self._current: tuple[Candidate, M] | None = None
        self._previous: tuple[Candidate, M] | None = None
        self._refused: dict[str, str] = {}  # a candidate's stamp -> why
        self._passed: set[str] = set()  # stamps of candidates that are no newer than the one served
        self._rolled_back: set[str] = set()  # digests
        self._newest: datetime | None = None  # when the newest model ever served here was made
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
    def served(self) -> Served | None:
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
        """End the search; a load under way is finished first."""
        self._stop.set()
        self._thread.join()
        gc.unfreeze()

    def roll_back(self) -> Served | None:
        """Take the previous model back and refuse the current one from now on.

        Returns what is served now, or None when there is no previous model.
        """
        with self._swapping:
            if self._current is None or self._previous is None:
                return None
            candidate, model = self._current
            self._current, self._previous = self._previous, None
            self._rolled_back.add(model.source.digest)
            self._refuse(candidate, _rolled_back(candidate), "rolled_back")
            back = self._current[1].source.served
        log.warning("rolled back from %s to %s", model.source.digest, back.digest)
        return back

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._look()
            except ModelUnavailableError as error:
                self._say(str(error))
            except Exception as error:  # a full memory, a broken library: the next look may work
                log.exception("looking for a model failed")
                self._say(f"loading failed: {type(error).__name__}: {error}")
            self._stop.wait(self._poll_seconds)

    def _say(self, reason: str) -> None:
        if reason != self._reason:
            log.warning("%s; looking again every %g s", reason, self._poll_seconds)
        self._reason = reason

    def _look(self) -> None:
        """Serve the newest candidate that is good, if it is newer than the one served.

        Raises ModelUnavailableError.
        """
        candidates = self._place.candidates()
        known = {candidate.stamp for candidate in candidates}
        for stamp in self._refused.keys() - known:  # gone or mended: no longer worth a word
            self._refused.pop(stamp, None)
        self._passed &= known
        unreadable = []
        for candidate in candidates:
            if self._current and candidate.stamp == self._current[0].stamp:
                return
            try:
                seen = candidate.stamp in self._refused or candidate.stamp in self._passed
                if not seen and self._try(candidate):
                    return
            except ModelUnavailableError as error:  # perhaps readable the next time
                unreadable.append(str(error))
        if self._current is None:
            raise ModelUnavailableError(
                "no model verifies: " + "; ".join(self.refused + unreadable)
            )

    def _try(self, candidate: Candidate) -> bool:
        """Whether the search ends here: with this candidate swapped in, or with the old one."""
        # Not the model itself, which must be able to go.
        before = self._previous and (self._previous[0], self._previous[1].source.digest)
        try:
            source = candidate.fetch()
            if self._is_served(candidate, source):
                return True
            if source.digest in self._rolled_back:  # touched, or copied, but the same
                raise BadModelError(_rolled_back(candidate))
            if not candidate.alone and self._newest and source.created <= self._newest:
                self._passed.add(candidate.stamp)  # newer ones have gone, or were rolled back
                return False
            if self._current is None:
                self._reason = f"the model {candidate.name} is loading"
            # At most two models in memory, or three while one loads and old requests end.
            with self._swapping:
                self._previous = None
            model = self._load(source)
            model.check()
        except (InvalidCheckpointError, BadModelError) as error:
            self._refuse(candidate, str(error), "refused")
            self._bring_back(before)
            return False
        except BaseException:
            self._bring_back(before)
            raise
        with self._swapping:
            self._previous, self._current = self._current, (candidate, model)
            self._newest = max(source.created, self._newest or source.created)
            first = self._previous is None
        if first:
            # Half a million objects of libraries: looking through them for garbage would hold up
            # every request for a quarter of a second, now and then. Models go without that.
            gc.freeze()
        self._metrics.model_swaps.labels("loaded").inc()
        log.info("serving %s, %s", candidate.name, source.digest)
        return True

    def _is_served(self, candidate: Candidate, source: VerifiedModel) -> bool:
        """Whether `source` is what is served: its files were touched, or copied, not changed."""
        with self._swapping:
            if self._current is None or self._current[1].source.digest != source.digest:
                return False
            self._current = (candidate, self._current[1])
        return True

    def _bring_back(self, before: tuple[Candidate, str] | None) -> None:
        """Load the model for `roll_back` again, which made room for one that was no good."""
        if before is None or self._previous is not None:
            return
        candidate, digest = before
        if self._current and self._current[1].source.digest == digest:
            return  # rolled back to in the meantime
        try:
            source = candidate.fetch()
            model = self._load(source) if source.digest == digest else None
        except Exception as error:
            log.warning("%s cannot be rolled back to any more: %s", candidate.name, error)
            return
        if model is not None:
            with self._swapping:
                self._previous = (candidate, model)

    def _refuse(self, candidate: Candidate, why: str, result: str) -> None:
        self._metrics.model_swaps.labels(result).inc()
        log.warning("refused: %s", why)
        self._refused[candidate.stamp] = why


def _rolled_back(candidate: Candidate) -> str:
    return f"{candidate.name}: rolled back by request"

"""Why something could not be had from the Hugging Face Hub or a bucket: not there, or no answer
for now."""

from collections.abc import Iterator

from trainyard_trainer.errors import ConfigError, HubUnreachableError, UserError, type_and_message

# Classes of httpx and of httpx2. The Hub's libraries use one or the other, and neither is ours to
# import, so their names decide; a user's configuration (UnsupportedProtocol) is not among them.
# Then those of botocore and of aiohttp, for buckets.
_NO_ANSWER = frozenset({"NetworkError", "TimeoutException", "RemoteProtocolError", "ProxyError"})
_NO_ANSWER |= {"HTTPClientError", "ConnectionError", "ClientPayloadError", "FSTimeoutError"}
_LATER = frozenset({408, 429})  # HTTP statuses, as is every 5xx


def failed_load(where: str, error: Exception, source: str = "") -> UserError:
    """What to raise when loading `where`, a setting and its value, has raised `error`.

    HubUnreachableError if the Hub gave no answer or said that it can't give one now, for which the
    next attempt may ask again; ConfigError for everything else: no such repository, no access, no
    such file, or a mode without network (HF_HUB_OFFLINE). `source`: where it was looked for.
    """
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE and (reason := no_answer(error)):
        return HubUnreachableError(
            f"{where}: the Hub ({constants.ENDPOINT}) can't be reached: {reason}"
        )
    return ConfigError(f"{where} could not be loaded{source}: {' '.join(str(error).split())[:300]}")


def no_answer(error: Exception) -> str:
    """Why a server gave no answer, or said that it can't for now; "" if that's not the error."""
    for cause in _chain(error):
        if _gave_no_answer(cause):
            return type_and_message(cause).partition(" For more information")[0][:200]
    return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, also where the library hides that (`raise ... from None`)."""
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        cause = pending.pop()
        if cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            pending += [cause.__context__, cause.__cause__]


def _gave_no_answer(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    else:
        status = getattr(response, "status_code", 0)
    if status in _LATER or status >= 500:
        return True
    return not _NO_ANSWER.isdisjoint(each.__name__ for each in type(error).__mro__)

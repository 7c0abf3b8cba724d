"""Buckets: a client that finds credentials where all AWS tools do, and its errors in words."""

import logging
from typing import Any

_CONNECT_SECONDS = 5
_READ_SECONDS = 30  # between two reads of a response


def s3_filesystem(attempts: int) -> Any:
    """An s3fs.S3FileSystem that makes each request up to so often, with growing pauses.

    Raises ImportError.
    """
    import s3fs  # type: ignore[import-untyped]  # slow

    for name in ("botocore", "aiobotocore"):  # they log where they found each credential
        logging.getLogger(name).setLevel(logging.WARNING)
    fs = s3fs.S3FileSystem(
        use_listings_cache=False,
        skip_instance_cache=True,
        config_kwargs={
            "connect_timeout": _CONNECT_SECONDS,
            "read_timeout": _READ_SECONDS,
            "retries": {"total_max_attempts": attempts, "mode": "standard"},
        },
    )
    fs.retries = attempts  # of a response that is cut off
    return fs


def s3_problem(error: Exception) -> str:
    """What went wrong in a bucket, on one line that says what to change."""
    from botocore.exceptions import (  # type: ignore[import-untyped]
        BotoCoreError,
        ClientError,
        NoCredentialsError,
    )

    if isinstance(error, NoCredentialsError):
        return (
            "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run with a"
            " role that may read it"
        )
    if isinstance(error, PermissionError):
        return "access denied: the credentials may not list or read it"
    if isinstance(error, FileNotFoundError):
        return "no such bucket or path"
    what = " ".join(str(error).split())[:300] or type(error).__name__
    unreachable = isinstance(error, BotoCoreError | ClientError | TimeoutError | ConnectionError)
    return f"cannot be {'reached' if unreachable else 'read'}: {what}"

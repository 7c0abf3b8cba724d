"""Checkpoints on disk: manifests written, read and verified against every file's sha256."""

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from trainyard_api.base import validation_message
from trainyard_api.checkpoint import MANIFEST, STEP_NAME, FileEntry, Manifest, step_of

_OWN_SHA256 = "sha256"  # the manifest's own, in its JSON


class InvalidCheckpointError(Exception):
    """The directory is not a valid checkpoint; the message is one line that says why."""


class UnreadableCheckpointError(InvalidCheckpointError):
    """The disk or the network failed: whether the directory is valid is unknown."""


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(directory: Path) -> dict[str, FileEntry]:
    """Entries of every regular file below `directory`, except the manifest itself."""
    return {
        path.relative_to(directory).as_posix(): FileEntry(
            size=path.stat().st_size, sha256=file_sha256(path)
        )
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }


def manifest_bytes(manifest: Manifest) -> bytes:
    """The manifest as written: stable JSON with its own sha256, by which it can be checked.

    The sha256 of these bytes names the checkpoint.
    """
    content = manifest.to_wire()
    return _stable_json(content | {_OWN_SHA256: _sha256(content)})


def _stable_json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def _sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(_stable_json(content)).hexdigest()


def digest(directory: Path) -> str:
    """`sha256:HEX` of the manifest: identifies every byte of the checkpoint."""
    return f"sha256:{file_sha256(directory / MANIFEST)}"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of `directory`; its files are not checked (see `verify`).

    Raises InvalidCheckpointError when it is missing or malformed.
    """
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_bytes())
        if content.pop(_OWN_SHA256) != _sha256(content):
            raise InvalidCheckpointError(f"{path}: altered: its own sha256 differs")
        return Manifest.model_validate(content)
    except FileNotFoundError:
        raise InvalidCheckpointError(f"{directory}: no {MANIFEST}") from None
    except OSError as error:
        raise UnreadableCheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        raise InvalidCheckpointError(f"{path}: {validation_message(error)}") from None
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise InvalidCheckpointError(f"{path}: not a manifest") from None


def verify(directory: Path) -> Manifest:
    """The manifest of `directory`, after checking every file's size and sha256 against it.

    Raises InvalidCheckpointError naming the first file that is missing, cut short or altered.
    """
    manifest = read_manifest(directory)
    for name, entry in manifest.files.items():
        path = directory / name
        if not path.resolve().is_relative_to(directory.resolve()):
            raise InvalidCheckpointError(f"{directory}: {name} lies outside the checkpoint")
        try:
            size = path.stat().st_size
            if size != entry.size:
                raise InvalidCheckpointError(
                    f"{path}: {size} bytes, the manifest says {entry.size}"
                )
            if file_sha256(path) != entry.sha256:
                raise InvalidCheckpointError(f"{path}: sha256 differs from the manifest's")
        except FileNotFoundError:
            raise InvalidCheckpointError(f"{path}: missing") from None
        except OSError as error:
            raise UnreadableCheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    return manifest


def steps(parent: Path) -> Iterator[Path]:
    """Step directories below `parent` (`checkpoints` or `models`), newest first, unverified.

    Only names that `step_name` makes: anything else in `parent` is ignored.
    """
    if parent.is_dir():
        directories = [parent / name for name in os.listdir(parent) if STEP_NAME.fullmatch(name)]
        yield from sorted(directories, key=step_of, reverse=True)


def eval_loss(manifest: Manifest) -> float:
    """The evaluation loss; infinite if the model wasn't evaluated or the loss isn't finite."""
    loss = manifest.metrics.get("eval_loss", math.inf)
    return loss if math.isfinite(loss) else math.inf


def best_first(parent: Path) -> list[tuple[float, Path]]:
    """The step directories below `parent` that have an evaluation loss, with it; unverified.

    The lowest loss comes first, of equal ones the newest.
    """
    evaluated: list[tuple[float, Path]] = []
    for directory in steps(parent):
        with contextlib.suppress(InvalidCheckpointError):
            if (loss := eval_loss(read_manifest(directory))) < math.inf:
                evaluated.append((loss, directory))
    return sorted(evaluated, key=lambda each: each[0])


def newest_valid(parent: Path) -> tuple[Path, Manifest, list[str]] | tuple[None, None, list[str]]:
    """The newest directory below `parent` that verifies, and why newer ones were skipped."""
    return first_valid(steps(parent))


def first_valid(
    directories: Iterable[Path],
) -> tuple[Path, Manifest, list[str]] | tuple[None, None, list[str]]:
    """The first of these that verifies, and why those before it were skipped."""
    skipped: list[str] = []
    for directory in directories:
        try:
            return directory, verify(directory), skipped
        except InvalidCheckpointError as error:
            skipped.append(str(error))
    return None, None, skipped

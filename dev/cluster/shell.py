"""Running commands: their output when they work, one clear line when they don't."""

from __future__ import annotations

import os
import subprocess
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from .errors import ClusterError
from .wait import PATIENCE

# Requests to the cluster's own addresses never go through a proxy.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    text_in: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; raises ClusterError with its last line of complaint."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            input=text_in,
            stdin=subprocess.DEVNULL if text_in is None else None,
            capture_output=True,
            text=True,
            env=dict(env) if env is not None else None,
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{_name(words)} gave no answer in {timeout:.0f} s") from None
    if check and done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        why = said[-1] if said else f"exit status {done.returncode}"
        raise ClusterError(f"{_name(words)}: {why}")
    return done


def _name(words: Sequence[str]) -> str:
    """A command as people speak of it: the program and what it was to do."""
    verbs = [word for word in words[1:] if not word.startswith("-")]
    return " ".join([Path(words[0]).name, *verbs[:1]])


def direct_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without proxies: the cluster's own addresses are on this machine."""
    env = {k: v for k, v in os.environ.items() if k.lower() not in _PROXIES}
    env.pop("KUBECONFIG", None)
    env["PATH"] = f"{env.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    env.update(extra or {})
    return env

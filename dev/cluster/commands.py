"""Running commands and waiting for conditions, with one clear line when something fails.

Standard library only, as preflight.py is.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Deadlines that notice a hang. They never judge how fast a machine is: a process that has ended is
# noticed at once, and a long wait is reported while it lasts.
PATIENCE = 600.0
# For what is fetched from elsewhere, or is several GB large.
TRANSFER = 1800.0
# A wait is reported only after this many seconds.
QUIET = 5.0

# Requests to the cluster's own addresses never go through a proxy.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


class UserError(Exception):
    """What is wrong and what to do about it, in one line: shown without a traceback."""


def run(
    command: Sequence[str | Path],
    *,
    check: bool = True,
    text_in: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; raises UserError with the last line of its error output."""
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
        raise UserError(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{_short(words)} did not finish within {timeout:.0f} s") from None
    if check and done.returncode != 0:
        output = (done.stderr or done.stdout).strip().splitlines()
        reason = output[-1] if output else f"exit status {done.returncode}"
        raise UserError(f"{_short(words)}: {reason}")
    return done


def direct_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment without proxies: the cluster's own addresses are on this machine."""
    env = {k: v for k, v in os.environ.items() if k.lower() not in _PROXIES}
    env.pop("KUBECONFIG", None)
    env["PATH"] = f"{env.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    env.update(extra or {})
    return env


def until(
    condition: Callable[[], bool],
    problem: str | Callable[[], str],
    report: Callable[[str], None] | None = None,
    *,
    seconds: float = PATIENCE,
) -> None:
    """Poll until the condition holds; after the deadline raise UserError(problem).

    report: called with the problem, too, once it has lasted for some seconds.
    """
    began = time.monotonic()
    pause = 0.05
    while not condition():
        text = problem if isinstance(problem, str) else problem()
        waited = time.monotonic() - began
        if waited > seconds:
            raise UserError(f"{text} (waited {seconds:.0f} s)")
        if report is not None and waited > QUIET:
            report(text)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)


class Kubectl:
    """Runs kubectl against one cluster, named by its kubeconfig or its context."""

    def __init__(
        self, program: str | Path, kubeconfig: Path | None = None, context: str = ""
    ) -> None:
        self._base: list[str | Path] = [program, "--request-timeout=15s"]
        if kubeconfig is not None:
            self._base.append(f"--kubeconfig={kubeconfig}")
        if context:
            self._base.append(f"--context={context}")
        # A context is of the user's own kubeconfig and may need the user's proxies.
        self._env = None if context else direct_env()

    def __call__(self, *words: str | Path, text_in: str | None = None) -> str:
        """Run it and return its output; raises UserError with the last line of its error output."""
        return run([*self._base, *words], text_in=text_in, env=self._env).stdout

    def works(self, *words: str | Path) -> bool:
        """Whether this command succeeds now."""
        try:
            self(*words)
        except UserError:
            return False
        return True

    def items(self, kind: str, *words: str) -> list[dict[str, Any]]:
        """The objects of a kind."""
        found = json.loads(self("get", kind, "-o", "json", *words))
        return list(found.get("items", []))

    def apply(self, manifests: str) -> None:
        """Server-side apply, so that applying twice changes nothing."""
        self(
            # There is no retry, so this one request may take long.
            *("apply", "--request-timeout=0", "--server-side", "--force-conflicts"),
            *("--field-manager=trainyard-cluster", "-f", "-"),
            text_in=manifests,
        )

    def node_states(self) -> dict[str, bool]:
        """Each node's name, and whether it is Ready."""
        return {
            node["metadata"]["name"]: any(
                c["type"] == "Ready" and c["status"] == "True"
                for c in node.get("status", {}).get("conditions", [])
            )
            for node in self.items("nodes")
        }

    def print_nodes(self) -> bool:
        """Print every node's state; whether there are nodes and all are Ready."""
        states = self.node_states()
        for name, ready in sorted(states.items()):
            print(f"  {name:<28} {'Ready' if ready else 'NotReady'}")
        return bool(states) and all(states.values())

    def all_ready(self) -> bool:
        """Whether the API server answers and every node is Ready."""
        try:
            states = self.node_states()
        except UserError:
            return False
        return bool(states) and all(states.values())


def _short(words: Sequence[str]) -> str:
    """A command as a message names it: the program and its first argument that is no option."""
    arguments = [word for word in words[1:] if not word.startswith("-")]
    return " ".join([Path(words[0]).name, *arguments[:1]])

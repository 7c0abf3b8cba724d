"""kubectl, with one cluster's kubeconfig or context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import ClusterError
from .shell import direct_env, run


class Kubectl:
    """Runs kubectl against one cluster."""

    def __init__(
        self, program: str | Path, kubeconfig: Path | None = None, context: str = ""
    ) -> None:
        self._base: list[str | Path] = [program, "--request-timeout=15s"]
        if kubeconfig is not None:
            self._base.append(f"--kubeconfig={kubeconfig}")
        if context:
            self._base.append(f"--context={context}")
        # With a context the user's own kubeconfig and proxies count; without, neither does.
        self._env = None if context else direct_env()

    def __call__(self, *words: str | Path, text_in: str | None = None) -> str:
        """Run it; its output, or a ClusterError with its last line of complaint."""
        return run([*self._base, *words], text_in=text_in, env=self._env).stdout

    def works(self, *words: str | Path) -> bool:
        """Whether this command succeeds now."""
        try:
            self(*words)
        except ClusterError:
            return False
        return True

    def items(self, kind: str, *words: str) -> list[dict[str, Any]]:
        """The objects of a kind."""
        found = json.loads(self("get", kind, "-o", "json", *words))
        return list(found.get("items", []))

    def apply(self, manifests: str) -> None:
        """Server-side apply, so that applying twice changes nothing."""
        self(
            # Nobody asks again: it may take as long as it takes.
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

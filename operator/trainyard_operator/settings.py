"""The operator's settings, from the environment (the chart sets them from its values)."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True)
class Settings:
    """What can be set.

    Attributes:
        trainer_image: TRAINYARD_TRAINER_IMAGE, the image of runs that name none.
        namespace: TRAINYARD_NAMESPACE, the only namespace to look after; empty: all.
        own_namespace: POD_NAMESPACE, where the Lease lives.
        identity: POD_NAME, who holds the Lease.
        port: TRAINYARD_PORT of /healthz, /readyz and /metrics.
        host: TRAINYARD_HOST, the address they are served on.
        log_format: TRAINYARD_LOG_FORMAT, json or text.
        workers: TRAINYARD_WORKERS, runs looked at in parallel.
    """

    trainer_image: str = "trainyard/trainer:latest"
    namespace: str = ""
    own_namespace: str = "default"
    identity: str = ""
    port: int = 8080
    host: str = "0.0.0.0"
    log_format: str = "text"
    workers: int = 16

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> "Settings":
        """Read the environment; raises ValueError with one line when a value makes no sense."""
        log_format = env.get("TRAINYARD_LOG_FORMAT") or cls.log_format
        if log_format not in ("json", "text"):
            raise ValueError(f"TRAINYARD_LOG_FORMAT: json or text, not {log_format!r}")
        return cls(
            trainer_image=env.get("TRAINYARD_TRAINER_IMAGE") or cls.trainer_image,
            namespace=env.get("TRAINYARD_NAMESPACE", ""),
            own_namespace=env.get("POD_NAMESPACE") or _own_namespace(),
            identity=env.get("POD_NAME") or f"{socket.gethostname()}-{os.getpid()}",
            port=_number(env, "TRAINYARD_PORT", cls.port),
            host=env.get("TRAINYARD_HOST") or cls.host,
            log_format=log_format,
            workers=_number(env, "TRAINYARD_WORKERS", cls.workers),
        )


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    text = env.get(name) or str(default)
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{name}: a whole number from 1 on, not {text!r}")
    return int(text)


def _own_namespace() -> str:
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return Settings.own_namespace

"""The operator's settings, from the environment (the chart sets them from its values)."""

import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


def _own_namespace() -> str:
    try:
        return (SERVICE_ACCOUNT / "namespace").read_text().strip()
    except OSError:
        return "default"


def _identity() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseSettings):
    """Each field is read from the variable that is its alias; an empty one counts as unset."""

    model_config = SettingsConfigDict(
        case_sensitive=True, env_ignore_empty=True, frozen=True, populate_by_name=True
    )

    trainer_image: str = Field(
        default="trainyard/trainer:latest",
        alias="TRAINYARD_TRAINER_IMAGE",
        description="Image of runs that name none.",
    )
    agent_image: str = Field(
        default="",
        alias="TRAINYARD_AGENT_IMAGE",
        description="Image that brings the agent into a run's pods; empty: none.",
    )
    namespace: str = Field(
        default="",
        alias="TRAINYARD_NAMESPACE",
        description="The only namespace to look after; empty: all.",
    )
    own_namespace: str = Field(
        default_factory=_own_namespace,
        alias="POD_NAMESPACE",
        description="Namespace of the Lease.",
    )
    identity: str = Field(
        default_factory=_identity, alias="POD_NAME", description="Who holds the Lease."
    )
    host: str = Field(
        default="0.0.0.0",
        alias="TRAINYARD_HOST",
        description="Address of /healthz, /readyz and /metrics.",
    )
    port: int = Field(default=8080, ge=1, le=65535, alias="TRAINYARD_PORT")
    log_format: Literal["json", "text"] = Field(default="text", alias="TRAINYARD_LOG_FORMAT")
    workers: int = Field(
        default=16, ge=1, alias="TRAINYARD_WORKERS", description="Runs reconciled in parallel."
    )

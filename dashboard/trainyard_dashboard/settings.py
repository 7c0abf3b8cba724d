"""Settings of the dashboard."""

import ipaddress
import os
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from trainyard_serving.settings import ServerSettings

HOME_ENV = "TRAINYARD_HOME"


class DashboardSettings(ServerSettings):
    """Where the dashboard reads from. Without a source it shows this machine's runs."""

    port: int = Field(default=8050, ge=0, le=65535, description="Port; 0 takes a free one.")
    poll_seconds: float = Field(
        default=5, ge=0.1, le=3600, description="Wait between two looks of an open page."
    )
    max_queue: int = Field(
        default=8, ge=1, description="Questions to the demo's model that may wait; more get a 429."
    )
    home: str | None = Field(
        default=None,
        min_length=1,
        description="Directory of `trainyard run` whose runs and studies are shown. Default:"
        " TRAINYARD_HOME or ~/.trainyard, if neither --cluster nor --prometheus-url is given.",
    )
    cluster: bool = Field(
        default=False,
        description="true shows the runs and studies of the cluster: the one this runs in, else"
        " the kubeconfig's.",
    )
    context: str | None = Field(
        default=None, min_length=1, description="Context of the kubeconfig, with --cluster."
    )
    namespace: str = Field(
        default="", max_length=63, description="The cluster's only namespace to show; empty: all."
    )
    prometheus_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@?#]+$",
        description="A Prometheus that scrapes the runs: it has the curves of a cluster's runs,"
        " and GPU metrics.",
    )
    prometheus_token: SecretStr | None = Field(
        default=None, description="Bearer token for it. Better set as a variable."
    )
    prices: str | None = Field(
        default=None,
        min_length=1,
        description="YAML file with prices of hardware. Default: examples, to copy and edit.",
    )
    demo_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@?#]+$",
        description="A generate, classify or vision server that the live demo asks.",
    )
    demo_api_key: SecretStr | None = Field(
        default=None, description="That server's API key. Better set as a variable."
    )

    @property
    def local_home(self) -> Path | None:
        """The directory to read runs from, if any."""
        if self.home is not None:
            return Path(self.home).absolute()
        if self.cluster or self.prometheus_url:
            return None
        return Path(os.environ.get(HOME_ENV) or Path.home() / ".trainyard").absolute()

    @property
    def local_only(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.local_only and self.api_key is None:
            raise ValueError(
                f"--host {self.host} lets others see the runs: set TRAINYARD_SERVING_API_KEY too"
            )
        if (self.context or self.namespace) and not self.cluster:
            raise ValueError("--context and --namespace need --cluster true")
        return self

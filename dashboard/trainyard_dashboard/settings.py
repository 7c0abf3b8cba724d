"""The dashboard's settings, from flags and TRAINYARD_SERVING_* environment variables."""

import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import SettingsConfigDict

from trainyard_serving.settings import ServerSettings, SettingsError

PROGRAM = "trainyard_dashboard"
HOME_ENV = "TRAINYARD_HOME"
ENV_PREFIX = "TRAINYARD_SERVING_"


class DashboardSettings(ServerSettings):
    """Show runs, scaling, cost and served models on a web page that changes nothing.

    Every flag can also be set as an environment variable: --max-queue is
    TRAINYARD_SERVING_MAX_QUEUE. Flags take precedence.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_kebab_case=True,
        cli_prog_name=PROGRAM,
    )

    port: int = Field(
        default=8050, ge=0, le=65535, description="Port to listen on; 0 selects a free one."
    )
    poll_seconds: float = Field(
        default=5, ge=0.1, le=3600, description="Seconds between two updates of an open page."
    )
    max_queue: int = Field(
        default=8, ge=1, description="Requests to the demo's model that may wait; more get a 429."
    )
    home: str | None = Field(
        default=None,
        min_length=1,
        description="Directory of `trainyard run` whose runs and studies are shown. Without it:"
        " TRAINYARD_HOME or ~/.trainyard, if neither --cluster nor --prometheus-url is given.",
    )
    cluster: bool = Field(
        default=False,
        description="true shows the runs and studies of the cluster that this runs in, or of the"
        " kubeconfig's.",
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
        description="URL of a Prometheus server that scrapes the runs. It provides the curves of a"
        " cluster's runs, and GPU metrics.",
    )
    prometheus_token: SecretStr | None = Field(
        default=None, description="Bearer token for it. Preferably set as a variable."
    )
    prices: str | None = Field(
        default=None,
        min_length=1,
        description="YAML file with hardware prices. Without it: examples, to copy and edit.",
    )
    demo_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@?#]+$",
        description="URL of the generate, classify or vision server that the demo sends to.",
    )
    demo_api_key: SecretStr | None = Field(
        default=None, description="That server's API key. Preferably set as a variable."
    )

    @property
    def local_home(self) -> Path | None:
        """The directory to read local runs from, if any."""
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
    def _consistent(self) -> Self:
        if not self.local_only and self.api_key is None:
            raise ValueError(
                f"--host {self.host} lets others see the runs: set {ENV_PREFIX}API_KEY, too"
            )
        if (self.context or self.namespace) and not self.cluster:
            raise ValueError("--context and --namespace need --cluster true")
        return self


def read_settings(argv: Sequence[str]) -> DashboardSettings:
    """Read the settings: flags first, then environment variables, then defaults.

    Prints the help and exits for --help; prints the usage and exits with 2 for an unknown flag.

    Raises:
        SettingsError: a value is invalid; one line names the flag and the problem.
    """
    try:
        return DashboardSettings(_cli_parse_args=list(argv))
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if not first["loc"]:
            raise SettingsError(message) from None
        flag = f"--{first['loc'][0]}".replace("_", "-")
        got = "" if first["input"] is None else f" (got {first['input']!r})"
        raise SettingsError(f"{flag}: {message}{got}") from None

"""Settings of the serving commands, read from flags and TRAINYARD_SERVING_* variables."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ENV_PREFIX = "TRAINYARD_SERVING_"


class SettingsError(Exception):
    """A setting is wrong; the message is one line that names the flag and what to change."""


class Source(BaseModel):
    """Where the model comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run_dir: Path | None = Field(
        default=None, description="A run's directory: its newest model that verifies is served."
    )
    model: Path | None = Field(
        default=None, description="One exported model's directory; its manifest must verify."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.run_dir is None) == (self.model is None):
            raise ValueError("give exactly one of --run-dir and --model")
        return self


class GenerateSettings(Source):
    """Settings of the text generation server; every limit has its own flag."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    served_model_name: str | None = Field(
        default=None, min_length=1, description="Model name clients use. Default: the run's name."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes a GPU where there is one."
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves it to PyTorch.")
    max_tokens: int = Field(
        default=4096, ge=1, description="The largest max_tokens a request may ask for."
    )
    max_prompts: int = Field(default=16, ge=1, description="Prompts in one request.")
    max_queue: int = Field(
        default=32, ge=1, description="Requests that may wait for the model; more get a 429."
    )
    max_body_bytes: int = Field(
        default=1024 * 1024, ge=1, description="Size of a request's body; more gets a 413."
    )
    retry_seconds: float = Field(
        default=5, gt=0, description="Wait between looks for a model that is not there yet."
    )
    drain_seconds: int = Field(
        default=30, ge=0, description="After SIGTERM, time that running requests have to finish."
    )


S = TypeVar("S", bound=Source)


def add_flags(parser: argparse.ArgumentParser, settings: type[Source]) -> None:
    """One flag per field; values stay text, so that pydantic checks flags and variables alike."""
    for name, field in settings.model_fields.items():
        default = "" if field.default is None else f" Default: {field.default}."
        parser.add_argument(
            _flag(name),
            metavar=name.upper(),
            default=None,
            help=f"{field.description}{default} [{ENV_PREFIX}{name.upper()}]",
        )


def read_settings(kind: type[S], args: argparse.Namespace, env: Mapping[str, str]) -> S:
    """The settings of `kind`: flags first, then variables, then defaults.

    Raises SettingsError.
    """
    names = kind.model_fields
    flags = {name: value for name in names if (value := getattr(args, name)) is not None}
    variables = {name: value for name in names if (value := env.get(ENV_PREFIX + name.upper()))}
    if flags.keys() & Source.model_fields.keys():  # a flag's model replaces a variable's run
        for name in Source.model_fields:
            variables.pop(name, None)
    try:
        return kind.model_validate(variables | flags)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{_flag(str(first['loc'][0]))}: " if first["loc"] else ""
        got = f" (got {first['input']!r})" if first["loc"] else ""
        raise SettingsError(where + first["msg"].removeprefix("Value error, ") + got) from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

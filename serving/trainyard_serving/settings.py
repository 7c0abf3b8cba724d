"""Settings of the serving commands, read from flags and TRAINYARD_SERVING_* variables."""

import argparse
from collections.abc import Mapping
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

ENV_PREFIX = "TRAINYARD_SERVING_"


class SettingsError(Exception):
    """A setting is wrong; the message is one line that names the flag and what to change."""


class Settings(BaseModel):
    """A group of settings: each field is a flag and a variable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Settings):
    """Where the model comes from."""

    run_dir: str | None = Field(
        default=None,
        min_length=1,
        description="A run's directory, or s3://bucket/path: its newest model that verifies is"
        " served, and newer ones as they come.",
    )
    step: int | None = Field(default=None, ge=0, description="Serve only this step of the run.")
    model: str | None = Field(
        default=None,
        min_length=1,
        description="One model's directory, or s3://bucket/path: a run's, whose manifest must"
        " verify, or any in Hugging Face form.",
    )
    digest: str | None = Field(
        default=None,
        pattern="^sha256:[0-9a-f]{64}$",
        description="Serve nothing but the model with this digest.",
    )
    cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Where models from s3:// are copied to. Default: a directory of the user's own"
        " in the temporary directory.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = (self.run_dir is not None) + (self.model is not None)
        if given != 1 and not (given == 0 and self._may_be_absent()):
            raise ValueError("give exactly one of --run-dir and --model")
        if self.step is not None and self.run_dir is None:
            raise ValueError("--step needs --run-dir")
        return self

    def _may_be_absent(self) -> bool:
        """Whether somebody else knows the model."""
        return False


class ServerSettings(Settings):
    """What every app's server can be told."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 takes a free one.")
    max_queue: int = Field(default=32, ge=1, description="Requests that may wait; more get a 429.")
    max_body_bytes: int = Field(
        default=1024 * 1024, ge=1, description="Size of a request's body; more gets a 413."
    )
    poll_seconds: float = Field(
        default=5, gt=0, description="Wait between looks for a newer model."
    )
    drain_seconds: int = Field(
        default=30, ge=0, description="After SIGTERM, time that running requests have to finish."
    )
    api_key: SecretStr | None = Field(
        default=None,
        description="Key that clients must send (Authorization: Bearer KEY); several, separated by"
        " commas, are all good. Better set as a variable: flags can be seen by other users.",
    )
    protect_health: bool = Field(
        default=False, description="Ask for the key on /health and /ready too."
    )
    protect_metrics: bool = Field(default=False, description="Ask for the key on /metrics too.")


class ComputeSettings(Settings):
    """How a model in this process computes."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes a GPU where there is one."
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0 leaves it to PyTorch.")


class SGLangSettings(Settings):
    """How to ask an SGLang server."""

    sglang_url: str = Field(
        default="http://127.0.0.1:30000", pattern="^https?://", description="Where SGLang listens."
    )
    sglang_api_key: SecretStr | None = Field(
        default=None, description="The key SGLang was started with (its --api-key)."
    )
    answer_seconds: float = Field(
        default=300, gt=0, description="Time that SGLang may keep silent before it is given up."
    )
    max_running: int = Field(
        default=32, ge=1, description="Requests given to SGLang at a time; more wait here."
    )


class GenerateSettings(Source, ServerSettings, ComputeSettings, SGLangSettings):
    """Settings of the text generation server."""

    engine: Literal["torch", "sglang"] = Field(
        default="torch",
        description="torch computes in this process; sglang asks an SGLang server, which may"
        " serve the verified model or, without --run-dir and --model, anything.",
    )
    served_model_name: str | None = Field(
        default=None, min_length=1, description="Model name clients use. Default: the run's name."
    )
    max_tokens: int = Field(
        default=4096, ge=1, description="The largest max_tokens a request may ask for."
    )
    max_prompts: int = Field(default=16, ge=1, description="Prompts in one request.")
    max_batch_size: int = Field(
        default=8, ge=1, description="Texts written together (engine torch); more wait."
    )

    def _may_be_absent(self) -> bool:
        return self.engine == "sglang" and self.step is None and self.digest is None


class ClassifySettings(Source, ServerSettings, ComputeSettings):
    """Settings of the text classification server."""

    port: int = Field(default=7860, ge=0, le=65535, description="Port; 0 takes a free one.")
    max_queue: int = Field(default=256, ge=1, description="Texts that may wait; more get a 429.")
    engine: Literal["torch", "onnx"] = Field(
        default="torch", description="onnx exports the model to ONNX Runtime when it is loaded."
    )
    precision: Literal["fp32", "int8"] = Field(
        default="fp32",
        description="int8, with engine onnx, is quick; it is taken only if it costs at most 0.3"
        " points of accuracy on the model's evaluation texts.",
    )
    # On CPUs 16 texts of 64 tokens are 2 to 3% quicker per text than 32, and wait half as long.
    max_batch_size: int = Field(default=16, ge=1, description="Texts computed together.")
    max_texts: int = Field(default=128, ge=1, description="Texts in one request.")
    min_accuracy: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="A model below it on its evaluation texts is refused. Default: 5 points below"
        " what the run reported.",
    )
    check_texts: int = Field(
        default=500, ge=1, description="Evaluation texts that a model is checked on (int8: all)."
    )

    @model_validator(mode="after")
    def _int8_needs_onnx(self) -> Self:
        if self.precision == "int8" and self.engine != "onnx":
            raise ValueError("--precision int8 needs --engine onnx")
        if self.max_texts > self.max_queue:
            raise ValueError("--max-texts must not be above --max-queue")
        return self


class VisionSettings(ServerSettings, SGLangSettings):
    """Settings of the vision server."""

    max_body_bytes: int = Field(
        default=9 * 2**20, ge=1, description="Size of a request's body; more gets a 413."
    )
    max_queue: int = Field(default=16, ge=1, description="Requests that may wait; more get a 429.")
    max_running: int = Field(
        default=8, ge=1, description="Requests worked on at a time, their images fetched included."
    )
    answer_seconds: float = Field(default=120, gt=0, description="Time for the model's answer.")
    model_name: str | None = Field(
        default=None, min_length=1, description="The model SGLang must serve. Default: any."
    )
    max_tokens: int = Field(default=512, ge=1, description="Length of an answer.")
    max_image_bytes: int = Field(
        default=8 * 2**20, ge=1, description="Size of an image; more gets a 413."
    )
    max_image_pixels: int = Field(
        default=16_000_000,
        ge=1,
        description="Pixels of an image; formats that take more memory may have fewer.",
    )
    max_image_side: int = Field(
        default=1536,
        ge=28,
        description="Longest side the model sees; larger images are made smaller.",
    )
    fetch_seconds: float = Field(
        default=10, gt=0, description="Time for fetching an image, or receiving one."
    )
    allowed_ports: str = Field(
        default="80,443",
        pattern=r"^\d{1,5}(,\d{1,5})*$",
        description="Ports that image URLs may name, separated by commas.",
    )
    allow_private_hosts: str = Field(
        default="",
        description="Names of image hosts, separated by commas, whose addresses may be private"
        " (loopback and link-local ones never).",
    )

    @model_validator(mode="after")
    def _bodies_hold_images(self) -> Self:
        if self.max_body_bytes <= self.max_image_bytes:
            raise ValueError("--max-body-bytes must be larger than --max-image-bytes")
        return self


S = TypeVar("S", bound=Settings)


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
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
    if flags.keys() & {"run_dir", "model"}:  # a flag's model replaces a variable's run
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

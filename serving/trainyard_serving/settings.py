"""Settings of the serving commands, from flags and TRAINYARD_SERVING_* variables."""

import argparse
import os
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from trainyard_serving.requirements import PATTERN, parse_requirements

ENV_PREFIX = "TRAINYARD_SERVING_"


class SettingsError(Exception):
    """A setting is invalid; the message is one line that names the flag and what to change."""


class Settings(BaseSettings):
    """A group of settings. Each field is a flag and a variable; an empty variable is unset.

    Except for API keys, of which an empty one is refused.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_ignore_empty=True, extra="forbid", frozen=True
    )


def _step(value: Any) -> Any:
    """A flag's or a variable's text."""
    if value in ("last", "best") or str(value).isdecimal():
        return value
    raise ValueError("must be last, best or the number of a step")


def keys_of(setting: SecretStr | None) -> list[str]:
    """The API keys of a setting, which are separated by commas."""
    text = setting.get_secret_value() if setting else ""
    return [key for part in text.split(",") if (key := part.strip())]


class ModelSource(Settings):
    """Where the model comes from."""

    run_dir: str | None = Field(
        default=None,
        min_length=1,
        description="A run's directory, or s3://bucket/path. One of its models that verify is"
        " served: see --step.",
    )
    step: Annotated[Literal["last", "best"] | int, BeforeValidator(_step)] = Field(
        default="last",
        description="Which of the run's models: last (the newest, and newer ones once they"
        " appear), best (the one with the lowest evaluation loss, and better ones once they"
        " appear) or the number of a step.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="A model's directory, or s3://bucket/path: a run's, whose manifest must"
        " verify, or any directory in Hugging Face format.",
    )
    digest: str | None = Field(
        default=None,
        pattern="^sha256:[0-9a-f]{64}$",
        description="Serve only the model with this digest.",
    )
    require: str = Field(
        default="",
        json_schema_extra={"pattern": PATTERN},
        description="Conditions on a model's metrics and scores, separated by commas, such as"
        " eval_loss<=2.5, arc_easy/acc>=0.4. A model that does not meet all of them is refused.",
    )
    cache_dir: str | None = Field(
        default=None,
        min_length=1,
        description="Directory for downloads from s3://. Default: a private directory in the"
        " system's temporary directory.",
    )

    @field_validator("require")
    @classmethod
    def _can_be_parsed(cls, value: str) -> str:
        parse_requirements(value)
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        given = (self.run_dir is not None) + (self.model is not None)
        if given != 1 and not (given == 0 and self._may_be_absent()):
            raise ValueError("give exactly one of --run-dir and --model")
        if self.step != "last" and self.run_dir is None:
            raise ValueError("--step needs --run-dir")
        return self

    def _may_be_absent(self) -> bool:
        """Whether the model may be unknown here."""
        return False


class ServerSettings(Settings):
    """Settings of every app."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=0, le=65535, description="Port; 0 selects a free one.")
    max_queue: int = Field(
        default=32, ge=1, description="Requests that may wait; further ones get a 429."
    )
    max_body_bytes: int = Field(
        default=1024 * 1024,
        ge=1,
        description="Largest size of a request's body, in bytes; larger ones get a 413.",
    )
    header_seconds: float = Field(
        default=20,
        gt=0,
        description="Seconds for receiving a request's headers; slower clients get a 408.",
    )
    body_seconds: float = Field(
        default=60,
        gt=0,
        description="Seconds for receiving a request's body; slower clients get a 408.",
    )
    poll_seconds: float = Field(
        default=5, gt=0, description="Seconds between two checks for a newer model."
    )
    drain_seconds: int = Field(
        default=30, ge=0, description="Seconds that running requests have to finish after SIGTERM."
    )
    api_key: SecretStr | None = Field(
        default=None,
        validate_default=True,
        description="Key that clients must send (Authorization: Bearer KEY). Several keys,"
        " separated by commas, are all accepted. Set it as a variable: other users can see flags.",
    )
    protect_health: bool = Field(
        default=False, description="Require the key on /health and /ready too."
    )
    protect_metrics: bool = Field(default=False, description="Require the key on /metrics too.")
    access_log: bool = Field(
        default=True,
        description="Log each request, except to /health, /ready and /metrics.",
    )
    cors_origins: str = Field(
        default="",
        pattern=r"^(\*|https?://[^/\s,]+(,https?://[^/\s,]+)*)?$",
        description="Origins, separated by commas, whose pages may use the API in browsers, such as"
        " https://app.example.org; * allows all. Default: none.",
    )
    path_prefix: str = Field(
        default="",
        pattern=r"^(/[\w.~-]+)*$",
        description="Path under which a proxy publishes the server without removing it from"
        " requests, such as /shakespeare.",
    )

    @field_validator("api_key", "admin_api_key", check_fields=False)
    @classmethod
    def _has_a_key(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        # An empty variable, such as that of an empty Secret, is not unset as others are: who sets
        # it believes that the server is protected.
        variable = f"{ENV_PREFIX}{info.field_name}".upper()
        given = value is not None or os.environ.get(variable) == ""
        if given and not keys_of(value):
            raise ValueError(f"no key is in it: set one, or leave out the flag and {variable}")
        return value

    @property
    def allowed_origins(self) -> list[str]:
        """`cors_origins` as browsers send them."""
        return self.cors_origins.lower().split(",") if self.cors_origins else []


class ComputeSettings(ServerSettings):
    """Settings of models that compute in this process."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto uses a GPU if there is one."
    )
    threads: int = Field(default=0, ge=0, description="CPU threads; 0: PyTorch's default.")
    admin_api_key: SecretStr | None = Field(
        default=None,
        validate_default=True,
        description="Key for POST /admin/rollback, which exists only with one. Several keys,"
        " separated by commas, are all accepted. Set it as a variable.",
    )

    @model_validator(mode="after")
    def _admins_have_their_own_key(self) -> Self:
        if set(keys_of(self.admin_api_key)) & set(keys_of(self.api_key)):
            raise ValueError("--admin-api-key must differ from --api-key, which all clients have")
        return self


class SGLangSettings(Settings):
    """Settings of apps whose model is on an SGLang server."""

    sglang_url: str = Field(
        default="http://127.0.0.1:30000",
        pattern="^https?://",
        description="URL of the SGLang server.",
    )
    sglang_api_key: SecretStr | None = Field(
        default=None, description="The API key of the SGLang server (its --api-key)."
    )
    answer_seconds: float = Field(
        default=300,
        gt=0,
        description="Seconds without data from SGLang after which a request fails.",
    )
    max_running: int = Field(
        default=32, ge=1, description="Requests sent to SGLang at a time; further ones wait here."
    )


class GenerateSettings(ModelSource, ComputeSettings, SGLangSettings):
    """Settings of the text generation server."""

    engine: Literal["torch", "sglang"] = Field(
        default="torch",
        description="torch computes in this process; sglang sends requests to an SGLang server,"
        " which serves the verified model or, without --run-dir and --model, any model.",
    )
    served_model_name: str | None = Field(
        default=None,
        min_length=1,
        description="Model name that clients use. Default: the run's name.",
    )
    max_tokens: int = Field(default=4096, ge=1, description="Largest max_tokens of a request.")
    max_prompts: int = Field(
        default=128,
        ge=1,
        description="Largest number of texts in a request: of its prompts times n or best_of.",
    )
    max_batch_size: int = Field(
        default=8, ge=1, description="Texts generated at a time (engine torch); further ones wait."
    )

    def _may_be_absent(self) -> bool:
        chosen = self.step != "last" or self.digest or self.require
        return self.engine == "sglang" and not chosen


class ClassifySettings(ModelSource, ComputeSettings):
    """Settings of the text classification server."""

    port: int = Field(default=7860, ge=0, le=65535, description="Port; 0 selects a free one.")
    max_queue: int = Field(
        default=256, ge=1, description="Texts that may wait; further ones get a 429."
    )
    engine: Literal["torch", "onnx"] = Field(
        default="torch", description="onnx exports the model to ONNX Runtime when it loads it."
    )
    precision: Literal["fp32", "int8"] = Field(
        default="fp32",
        description="int8 needs engine onnx and is faster; it is used only if it costs at most 0.3"
        " points of accuracy on the model's evaluation texts.",
    )
    # On CPUs 16 texts of 64 tokens take 2 to 3% less time per text than 32, and wait half as long.
    max_batch_size: int = Field(default=16, ge=1, description="Texts computed at a time.")
    max_texts: int = Field(
        default_factory=lambda data: min(128, data["max_queue"]),
        ge=1,
        description="Largest number of texts in a request. Default: 128, or --max-queue if less.",
        json_schema_extra={"default": 128},
    )
    min_accuracy: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="A model with a lower accuracy on its evaluation texts is refused. Default: 5"
        " points below the accuracy that the run reported.",
    )
    check_texts: int = Field(
        default=500, ge=1, description="Evaluation texts on which a model is checked (int8: all)."
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
        default=28 * 2**20,
        ge=1,
        description="Largest size of a request's body, in bytes; larger ones get a 413.",
    )
    max_queue: int = Field(
        default=16, ge=1, description="Requests that may wait; further ones get a 429."
    )
    max_running: int = Field(
        default=8,
        ge=1,
        description="Requests processed at a time, including the fetching of images.",
    )
    answer_seconds: float = Field(default=120, gt=0, description="Seconds for the model's answer.")
    model_name: str | None = Field(
        default=None, min_length=1, description="The model that SGLang must serve. Default: any."
    )
    max_tokens: int = Field(default=512, ge=1, description="Largest number of tokens in an answer.")
    max_images: int = Field(default=8, ge=1, description="Largest number of images in a request.")
    max_image_bytes: int = Field(
        default=20 * 2**20,
        ge=1,
        description="Largest size of an image, in bytes; larger ones get a 413.",
    )
    max_image_pixels: int = Field(
        default=50_000_000,
        ge=1,
        description="Largest number of pixels of an image; less for formats that need more of the"
        " decoder's memory.",
    )
    max_image_side: int = Field(
        default=1536,
        ge=28,
        description="Longest side of an image, in pixels; larger images are scaled down.",
    )
    decoders: int = Field(
        default=2, ge=1, description="Processes that decode images, each with memory of its own."
    )
    decoder_memory_bytes: int = Field(
        default=2**30,
        ge=2**28,
        description="Address space of a decoder's process, in bytes.",
    )
    decoder_seconds: int = Field(default=20, ge=1, description="Seconds for decoding an image.")
    fetch_seconds: float = Field(default=10, gt=0, description="Seconds for fetching an image.")
    allowed_ports: str = Field(
        default="80,443",
        pattern=r"^\d{1,5}(,\d{1,5})*$",
        description="Ports allowed in image URLs, separated by commas.",
    )
    allow_private_hosts: str = Field(
        default="",
        description="Names of image hosts, separated by commas, whose addresses may be private"
        " (but never loopback or link-local).",
    )

    @model_validator(mode="after")
    def _bodies_hold_images(self) -> Self:
        if self.max_body_bytes <= self.max_image_bytes:
            raise ValueError("--max-body-bytes must be larger than --max-image-bytes")
        return self


S = TypeVar("S", bound=Settings)


def add_flags(parser: argparse.ArgumentParser, settings: type[Settings]) -> None:
    """Add a flag for each field; its value remains a string, validated like a variable's."""
    for name, field in settings.model_fields.items():
        named = field.default is not None and not field.default_factory
        default = f" Default: {field.default}." if named else ""
        parser.add_argument(
            _flag(name),
            metavar=name.upper(),
            default=None,
            help=f"{field.description}{default} [{ENV_PREFIX}{name.upper()}]",
        )


def read_settings(kind: type[S], args: argparse.Namespace) -> S:
    """The settings of `kind`: flags first, then variables, then defaults.

    Raises SettingsError.
    """
    values = {name: getattr(args, name) for name in kind.model_fields}
    given = {name: value for name, value in values.items() if value is not None}
    if given.keys() & {"run_dir", "model"}:  # a flag's model replaces a variable's run
        which = ("run_dir", "model", "step", "digest")
        defaults = {name: ModelSource.model_fields[name].default for name in which}
        given = defaults | given
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{_flag(str(first['loc'][0]))}: " if first["loc"] else ""
        got = f" (got {first['input']!r})" if first["loc"] and first["input"] is not None else ""
        raise SettingsError(where + first["msg"].removeprefix("Value error, ") + got) from None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

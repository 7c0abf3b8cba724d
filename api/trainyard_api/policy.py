"""What a user says about failures and waiting: backoff, deadlines, and rules by kind of failure."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints
from pydantic_core import SchemaError, SchemaValidator, core_schema

from trainyard_api.base import Rule, SpecModel


def is_pattern(text: str) -> bool:
    """Whether `text` is a regular expression that `finds` understands."""
    try:
        finds(text, "")
    except SchemaError:
        return False
    return True


def finds(pattern: str, text: str) -> bool:
    """Whether the regular expression matches somewhere in `text`.

    Matched by pydantic's engine (Rust's regex), whose time is linear in the text: a pattern comes
    from anybody who may create a run, and must not be able to stop the operator, as it could with
    Python's `re`.
    Raises SchemaError for what is no such expression.
    """
    schema = core_schema.str_schema(pattern=pattern, regex_engine="rust-regex")
    return SchemaValidator(schema).isinstance_python(text)


class Backoff(SpecModel):
    """How long to wait before the next attempt; the wait doubles with each failed attempt."""

    rules: ClassVar = (
        Rule(
            "self.initialSeconds <= self.maxSeconds",
            "backoff.initialSeconds must not be greater than backoff.maxSeconds",
            lambda s: s.initial_seconds <= s.max_seconds,
        ),
    )

    initial_seconds: int = Field(
        default=5, ge=0, le=86400, description="Seconds to wait after the first failed attempt."
    )
    max_seconds: int = Field(
        default=300, ge=0, le=86400, description="Longest wait between two attempts, in seconds."
    )


class Deadlines(SpecModel):
    """How long each step of an attempt's start may take. Only joining can fail an attempt.

    When scheduling or starting takes longer, the attempt releases its resources, and the next one
    starts after a backoff. That does not count as a restart.
    """

    queue_seconds: int | None = Field(
        default=None,
        ge=1,
        description="Seconds to wait for the queue to admit the pods; after that the run fails."
        " Default: no limit.",
    )
    schedule_seconds: int | None = Field(
        default=None,
        ge=1,
        le=86400,
        description="Seconds within which every pod must be created and scheduled, from the"
        " admission by the queue. Default: 600.",
    )
    start_seconds: int | None = Field(
        default=None,
        ge=1,
        le=86400,
        description="Seconds within which every scheduled pod must mount its volumes, pull its"
        " image and start. Default: 1800.",
    )
    join_seconds: int | None = Field(
        default=None,
        ge=1,
        le=86400,
        description="Seconds within which every rank must join once every pod runs. After that the"
        " attempt fails with reason StartTimeout. Default: 600.",
    )


class Hang(SpecModel):
    """When the ranks of your own script count as hung, and what follows.

    Ranks are hung when none of them has worked: no new report, no CPU time, no reads or writes, and
    the same stack. The message names the rank that the others wait for.
    """

    after_seconds: int = Field(
        default=300,
        ge=0,
        le=86400,
        description="Seconds in which no rank works that count as a hang. 0: hangs are not looked"
        " for.",
    )
    action: Literal["warn", "restart"] = Field(
        default="warn",
        description="What follows. warn: the status and an Event say so. restart: the attempt also"
        " fails, with reason Hang, and the next one starts as failurePolicy says.",
    )


# Why an attempt can fail: docs/start/concepts.md says what each means.
FailureReason = Literal[
    "ConfigError",
    "UserException",
    "ExitCode",
    "DiskFull",
    "HardwareError",
    "OOMKilled",
    "Hang",
    "Signal",
    "StartTimeout",
    "PeerLost",
    "Unknown",
    "NodeLost",
    "Evicted",
    "Preempted",
    "PodDeleted",
    "StartError",
    "HubUnreachable",
]


class ExitCodes(SpecModel):
    """Exit codes that a rule applies to."""

    operator: Literal["In", "NotIn"] = Field(
        default="In", description="Whether the exit code must be one of the values, or none."
    )
    values: list[Annotated[int, Field(ge=0, le=255)]] = Field(
        min_length=1,
        max_length=64,
        description="Exit codes; 128 plus the signal's number for a process that a signal ended.",
    )


class FailureRule(SpecModel):
    """One rule of failurePolicy: it applies to a failure that meets all of its conditions."""

    rules: ClassVar = (
        Rule(
            "has(self.onReasons) || has(self.onExitCodes) || has(self.onExceptions)"
            " || has(self.onMessage)",
            "a rule of failurePolicy needs onReasons, onExitCodes, onExceptions or onMessage",
            lambda s: bool(s.on_reasons or s.on_exit_codes or s.on_exceptions or s.on_message),
        ),
        Rule(
            # CEL has no way to ask: an expression that can't be compiled is an error in both terms.
            "!has(self.onMessage) || ''.matches(self.onMessage) || !''.matches(self.onMessage)",
            "onMessage must be a regular expression in RE2's syntax",
            lambda s: s.on_message is None or is_pattern(s.on_message),
        ),
    )

    action: Literal["Restart", "Ignore", "Fail"] = Field(
        description="Restart: start the next attempt, counted against maxRestarts. Ignore: start"
        " it without counting, as after a disruption. Fail: stop, and wait for the user."
    )
    on_reasons: list[FailureReason] | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="Reasons of the failure, for example [OOMKilled, Signal].",
    )
    on_exit_codes: ExitCodes | None = None
    on_exceptions: list[Annotated[str, StringConstraints(max_length=256)]] | None = Field(
        default=None,
        min_length=1,
        max_length=32,
        description="Names of exception classes, without their modules, for example"
        " [TimeoutError].",
    )
    on_message: str | None = Field(
        default=None,
        max_length=256,
        description="Regular expression that is searched for in the one-line message. Syntax: that"
        " of RE2, without look-around and backreferences.",
    )


class FailurePolicy(SpecModel):
    """What to do after which failure; the first rule that applies decides, else the defaults."""

    failure_rules: list[FailureRule] = Field(
        alias="rules",
        min_length=1,
        max_length=32,
        description="Rules, in the order they are tried.",
    )

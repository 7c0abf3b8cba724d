"""charts/serving refuses values that don't fit, and says what to change."""

import pytest

from .conftest import Refusal
from .serving_values import (
    CLASSIFY,
    CPU,
    EMBED,
    GENERATE,
    HUB,
    KEY,
    MONITOR,
    PROTECTED,
    S3,
    SGLANG,
    VISION,
)

DIGEST = "digest=sha256:" + "00" * 32


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((), "run: name the TrainingRun to serve, for example --set run=shakespeare"),
        (("app=vision",), "model: name the vision-language model to serve"),
        (
            (*EMBED, "engine=onnx"),
            "app embed has no engine onnx: set engine to torch",
        ),
        (
            (*CLASSIFY, "engine=sglang"),
            "app classify has no engine sglang: set engine to torch or onnx",
        ),
        (
            (*GENERATE, "engine=onnx"),
            "app generate has no engine onnx: set engine to torch or sglang",
        ),
        ((*VISION, "engine=torch"), "app vision has no engine torch: set engine to sglang"),
        ((*VISION, "engine=onnx"), "app vision has no engine onnx: set engine to sglang"),
        (
            (*GENERATE, "model=x", "claimName=y"),
            "model: x: with run, set it to last, best or the number of a step",
        ),
        (("model=best", "claimName=y"), "model: best is one of a run's models: set run, too"),
        (("app=classify", "model=4"), "model: 4 is one of a run's models: set run, too"),
        (("app=vision", "model=last"), "model: last is one of a run's models: set run, too"),
        (("app=vision", "run=a"), "no recipe trains a vision-language model: set model instead"),
        ((*S3, "runDirectory=a"), "runDirectory: applies only to run"),
        ((*S3, "claimName=a"), "the model is at s3://: leave claimName empty"),
        (("model=/a/b", "claimName=c"), "give the path on the claim c without the leading /"),
        (
            ("model=gpt2",),
            "only engine sglang fetches from the Hub; for a path on a volume, set claimName",
        ),
        (
            ("engine=sglang", "model=a/b/c"),
            "a/b/c is not a Hub id; for a path on a volume, set claimName",
        ),
        ((*HUB, DIGEST), "is not checked against a digest: pin its commit with sglang.revision"),
        ((*SGLANG, "sglang.revision=main"), "sglang.revision: applies only to a Hub id"),
        ((*GENERATE, "s3.secretName=a"), "s3: applies only to a model at s3://"),
        ((*CLASSIFY, "settings.precision=int8"), "int8 needs ONNX Runtime: set engine to onnx"),
        ((*GENERATE, *KEY, "apiKey.existingSecret=a"), "value and existingSecret are both set"),
        (
            (*GENERATE, "adminApiKey.value=aaaaaaaaaaaaaaaa", "adminApiKey.existingSecret=a"),
            "adminApiKey: value and existingSecret are both set",
        ),
        ((*SGLANG, "adminApiKey.existingSecret=a"), "adminApiKey: engine sglang has no rollback"),
        (
            (*GENERATE, *KEY, "adminApiKey.value=correct-horse-battery"),
            "adminApiKey.value: must differ from apiKey.value",
        ),
        (
            (
                *GENERATE,
                "apiKey.existingSecret=a",
                "adminApiKey.existingSecret=a",
                "adminApiKey.secretKey=api-key",
            ),
            "adminApiKey.secretKey: must differ from apiKey.secretKey",
        ),
        (
            (*GENERATE, "settings.protectHealth=true"),
            "settings.protectHealth: has no effect without a key",
        ),
        (
            (*GENERATE, "settings.protectMetrics=true"),
            "settings.protectMetrics: has no effect without a key",
        ),
        (
            (*GENERATE, *PROTECTED, *MONITOR, "apiKey.value=aaaaaaaaaaaaaaaa\\,bbbbbbbbbbbbbbbb"),
            "Prometheus would send apiKey.value as one key",
        ),
        ((*SGLANG, *CPU), "cpu does not measure a GPU's load: use queue"),
        ((*GENERATE, *CPU, "resources.requests.cpu=null"), "cpu needs resources.requests.cpu"),
        ((*GENERATE, "autoscaling.kind=queue"), "set the address of Prometheus for KEDA"),
        ((*GENERATE, "autoscaling.minReplicas=5"), "minReplicas 5 is more than maxReplicas 4"),
        ((*GENERATE, "ingress.enabled=true"), "ingress.host: name the host"),
    ],
)
def test_values_that_do_not_fit_are_refused(
    refusal: Refusal, values: tuple[str, ...], said: str
) -> None:
    assert said in refusal("serving", *values)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("app=translate", "app"),
        ("engine=vllm", "engine"),
        ("run=Shakespeare", "run"),
        ("run=-a", "run"),
        ("run=" + "a" * 51, "run"),
        ("claimName=A", "claimName"),
        ("runDirectory=/abs", "runDirectory"),
        ("runDirectory=../x", "runDirectory"),
        ("runDirectory=gs://bucket/x", "runDirectory"),
        ("model=http://example.org/x", "model"),
        ("model=-1", "model"),
        ("model=true", "model"),
        ("step=4", "step"),
        ("digest=sha256:12", "digest"),
        ("settings.maxToken=5", "maxToken"),
        ("settings.maxQueue=0", "maxQueue"),
        ("settings.corsOrigins=app.example.org", "corsOrigins"),
        ("settings.corsOrigins=https://app.example.org/", "corsOrigins"),
        ("settings.pathPrefix=shakespeare", "pathPrefix"),
        ("settings.pathPrefix=/shakespeare/", "pathPrefix"),
        ("settings.pollSeconds=0", "pollSeconds"),
        ("settings.drainSeconds=null", "drainSeconds"),
        ("service.port=0", "port"),
        ("service.type=External", "type"),
        ("strategy.type=Rolling", "type"),
        ("autoscaling.minReplicas=0", "minReplicas"),
        ("autoscaling.kind=gpu", "kind"),
        ("apiKey.value=short", "value"),
        ("apiKey.value=aaaaaaaaaaaaaaaa\\,short", "value"),
        ("adminApiKey.value=\\,\\,\\,\\,\\,\\,\\,\\,\\,\\,\\,\\,\\,\\,\\,\\,", "value"),
        ("sglang.image.tag=latest", "tag"),
        ("networkPolicy.ingressFrom[0].namespace=x", "ingressFrom"),
        ("s3.endpoint=minio:9000", "endpoint"),
        ("test.prompt=", "prompt"),
    ],
)
def test_the_schema_refuses_a_wrong_value_and_names_it(
    refusal: Refusal, value: str, named: str
) -> None:
    message = refusal("serving", "run=a", value)
    assert "don't meet the specifications of the schema" in message
    assert named in message

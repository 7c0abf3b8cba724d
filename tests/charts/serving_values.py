"""Values of charts/serving that the tests render again and again."""

GENERATE = ("run=shakespeare",)
CLASSIFY = ("app=classify", "run=ag-news")
ONNX = (*CLASSIFY, "engine=onnx")
EMBED = ("app=embed", "claimName=models", "model=all-minilm")
S3 = ("app=classify", "model=s3://models/ag-news", "s3.endpoint=http://minio.storage:9000")
S3_KEYS = (*S3, "s3.secretName=s3-keys")
SGLANG = (*GENERATE, "engine=sglang")
HUB = ("engine=sglang", "model=Qwen/Qwen2-0.5B-Instruct")
VISION = ("app=vision", "model=Qwen/Qwen2-VL-7B-Instruct")
VISION_CLAIM = ("app=vision", "model=qwen/vl", "claimName=models")
KEY = ("apiKey.value=correct-horse-battery",)
PROTECTED = (*KEY, "settings.protectHealth=true", "settings.protectMetrics=true")
MONITOR = ("metrics.serviceMonitor.enabled=true", "metrics.serviceMonitor.labels.release=prom")
CPU = ("autoscaling.kind=cpu",)
QUEUE = ("autoscaling.kind=queue", "autoscaling.queue.serverAddress=http://prometheus:9090")
INGRESS = (
    "ingress.enabled=true",
    "ingress.host=shakespeare.example.org",
    "ingress.className=nginx",
    "ingress.tlsSecretName=tls",
)

# One of everything: what every manifest that the chart can make is checked with.
SHAPES = {
    "generate": GENERATE,
    "classify-onnx": ONNX,
    "embed": EMBED,
    "s3": S3_KEYS,
    "sglang": SGLANG,
    "hub": (*HUB, "sglang.revision=v1", "sglang.hubToken.secretName=hf"),
    "vision": VISION,
    "vision-claim": VISION_CLAIM,
    "protected": (*GENERATE, *PROTECTED, *MONITOR, *INGRESS),
    "cpu": (*CLASSIFY, *CPU, "autoscaling.minReplicas=2", "strategy.type=Recreate"),
    "queue": (*SGLANG, *QUEUE),
    "peers": (
        *S3,
        'networkPolicy.ingressFrom:=[{"namespaceSelector":{}}]',
        'networkPolicy.dnsTo:=[{"ipBlock":{"cidr":"169.254.20.10/32"}}]',
        'networkPolicy.s3To:=[{"podSelector":{"matchLabels":{"app":"minio"}}}]',
        'networkPolicy.extraEgress:=[{"ports":[{"port":4317}]}]',
    ),
}

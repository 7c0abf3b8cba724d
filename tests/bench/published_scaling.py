"""Throughput by number of GPUs as TensorFlow's developers published it: images/s, synthetic data.

https://github.com/tensorflow/tensorflow, tensorflow/docs_src/performance/benchmarks.md, May 2017;
each figure is the mean of five runs. All of its tables of training on synthetic data.
"""

_GPUS = (1, 2, 4, 8)
_SERVERS = (1, 8, 16, 32, 64)  # eight GPUs in each

# DGX-1 (P100), then Google Compute Engine, Amazon EC2 (both K80), then several EC2 machines.
_ONE_MACHINE = (
    (142, 284, 569, 1131),
    (219, 422, 852, 1734),
    (91.8, 181, 356, 716),
    (2987, 5658, 10509, 17822),
    (154, 295, 584, 1081),
    (128, 259, 520, 995),
    (195, 368, 768, 1485),
    (82.7, 160, 317, 632),
    (144, 281, 549, 820),
    (30.5, 57.8, 116, 227),
    (51.9, 99.0, 195, 387),
    (20.0, 38.2, 75.8, 148),
    (656, 1209, 2328, 4640),
    (35.4, 64.8, 120, 234),
    (29.3, 55.0, 109, 216),
    (49.5, 95.4, 183, 362),
    (30.8, 58.7, 117, 230),
    (51.5, 98.0, 195, 384),
    (19.7, 37.6, 74.9, 149),
    (684, 1244, 2479, 4853),
    (36.3, 69.4, 141, 260),
    (29.9, 57.5, 114, 216),
    (49.0, 94.1, 184, 355),
)
_SEVERAL = (
    (29.7, 229, 459, 902, 1783),
    (52.4, 378, 751, 1388, 2744),
    (19.4, 146, 291, 565, 981),
    (29.2, 219, 427, 820, 1608),
    (48.4, 333, 667, 1180, 2315),
)

PUBLISHED: list[dict[int, float]] = [
    *(dict(zip(_GPUS, row, strict=True)) for row in _ONE_MACHINE),
    *(dict(zip(_SERVERS, row, strict=True)) for row in _SEVERAL),
]

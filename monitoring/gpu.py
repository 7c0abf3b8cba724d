"""The metrics of NVIDIA's DCGM exporter that the dashboards show.

They are that program's names. It must tell pods apart (its Kubernetes mode), and be scraped with
its own labels `namespace` and `pod` kept (honorLabels).
"""

UTILISATION = "DCGM_FI_DEV_GPU_UTIL"  # percent
TENSOR_ACTIVE = "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE"  # ratio
MEMORY_USED = "DCGM_FI_DEV_FB_USED"  # MiB
POWER = "DCGM_FI_DEV_POWER_USAGE"  # watts
TEMPERATURE = "DCGM_FI_DEV_GPU_TEMP"  # degrees Celsius
XID_ERRORS = "DCGM_FI_DEV_XID_ERRORS"  # number of the newest error

PREFIX = "DCGM_"

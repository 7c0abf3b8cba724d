"""TrainerJob: everything the operator (or `trainyard run`) passes to the trainer.

It is passed as JSON in the environment variable TRAINYARD_JOB.
"""

import re
from typing import Any

from pydantic import Field

from trainyard_api.base import Model
from trainyard_api.spec import CheckpointPolicy, Precision, Strategy
from trainyard_api.start_from import StartFrom

JOB_ENV = "TRAINYARD_JOB"
# Where the trainer leaves a final ProgressReport if it succeeds, torchelastic's error JSON if it
# fails. The agent reads it; in a pod without an agent this is the pod's termination message.
RESULT_FILE_ENV = "TRAINYARD_RESULT_FILE"
# Also set for user commands, so that scripts can find a directory that outlives the pod.
RUN_DIR_ENV = "TRAINYARD_RUN_DIR"
RUN_ENV = "TRAINYARD_RUN"
ATTEMPT_ENV = "TRAINYARD_ATTEMPT"
UID_ENV = "TRAINYARD_RUN_UID"  # of scripts: a job has its own
# Of scripts with spec.startFrom: the other run's directory, or startFrom.path; its name, absent
# with a path; which of its checkpoints or models; and what of it.
START_DIR_ENV = "TRAINYARD_START_DIR"
START_RUN_ENV = "TRAINYARD_START_RUN"
START_STEP_ENV = "TRAINYARD_START_STEP"
START_WHAT_ENV = "TRAINYARD_START_WHAT"
# What the agent gets: the worker's own directory, with the files that it leaves there, and where
# to write how it ended.
WORKER_DIR_ENV = "TRAINYARD_WORKER_DIR"
# Set by an agent that watches a recipe's ranks: the directory for their heartbeats.
HEARTBEATS_ENV = "TRAINYARD_HEARTBEATS"
TERMINATION_LOG_ENV = "TRAINYARD_TERMINATION_LOG"
# Seconds after SIGTERM in which the command may end by itself; then the agent kills it.
GRACE_ENV = "TRAINYARD_GRACE_SECONDS"
RESULT_FILE = "result"
ERROR_FILE = "error.json"
# Where agents serve what they see of their node's ranks, and that of node 0 the run's report.
REPORT_PORT_ENV = "TRAINYARD_REPORT_PORT"
# Where a recipe's rank 0 serves the report that the agent of its node passes on.
TRAINER_PORT_ENV = "TRAINYARD_TRAINER_PORT"
NODE_ENV = "TRAINYARD_NODE"
# On node 0: HOST:PORT of the other agents, separated by commas.
PEERS_ENV = "TRAINYARD_PEERS"
# Seconds without progress that are a hang (0: not watched), and what follows: warn or restart.
HANG_ENV = "TRAINYARD_HANG_SECONDS"
HANG_ACTION_ENV = "TRAINYARD_HANG_ACTION"

# The trainer's exit status for a mistake in the manifest (BSD's EX_CONFIG): never retried.
EXIT_CONFIG = 78

# What PyTorch says of a GPU or a link that is broken, in the trainer and in any script: texts of
# cudaGetErrorString of cudaErrorECCUncorrectable, NvlinkUncorrectable, HardwareStackError,
# LaunchFailure, Contained, SystemNotReady and DevicesUnavailable, and the driver's Xid numbers.
HARDWARE_FAULT = re.compile(
    r"uncorrectable (ECC|NVLink) error|hardware stack error|unspecified launch failure"
    r"|invalid access of peer GPU memory over nvlink or a hardware error"
    r"|GPU has fallen off the bus|\bXid\b|CUDA[^.]* system not yet initialized"
    r"|CUDA-capable device\(s\) is/are busy or unavailable",
    re.IGNORECASE,
)

# A kernel that did what no GPU allows, of cudaErrorIllegalAddress, IllegalInstruction,
# MisalignedAddress, InvalidPc, InvalidAddressSpace and Assert: a mistake in a program or its data.
KERNEL_FAULT = re.compile(
    r"an illegal (memory access|instruction) was encountered|misaligned address"
    r"|invalid program counter|operation not supported on global/shared address space"
    r"|device-side assert triggered"
)
# NCCL was used wrongly, which no other attempt mends: ranks share a GPU (the words of NCCL 2.28
# and 2.30), or the nodes have different versions.
NCCL_MISUSE = re.compile(
    r"invalid (usage|argument) \(run with NCCL_DEBUG|ncclInvalid(Usage|Argument)"
    r"|Duplicate GPU detected|Multiple Ranks are using the same GPU|Mismatched NCCL version"
)

# Where volumes are mounted in pods; a run's directory is MOUNT_PATH/NAME.
MOUNT_PATH = "/trainyard"
# Where the claim of spec.startFrom.run is mounted, read-only, unless it is the run's own claim.
START_PATH = "/trainyard-start"


class TrainerJob(Model):
    """One attempt of one run."""

    run: str
    namespace: str = "default"
    uid: str = ""
    attempt: int = 1
    recipe: str
    config: dict[str, Any] = Field(default_factory=dict)
    strategy: Strategy = "ddp"
    precision: Precision = "fp32"
    seed: int = 0
    checkpoint: CheckpointPolicy = Field(default_factory=CheckpointPolicy)
    run_dir: str = Field(
        description="Directory of this run on the volume (see trainyard_api.checkpoint)."
    )
    start_from: StartFrom | None = None
    start_dir: str | None = Field(
        default=None,
        description="Directory of start_from: of the other run, or of one checkpoint. Absent once"
        " the run has had a checkpoint of its own.",
    )
    report_port: int = Field(description="Where rank 0 serves /metrics and /progress.")
    require_gpu: bool = Field(
        default=False,
        description="GPUs were requested: fail if there is none. Otherwise train on the CPU.",
    )

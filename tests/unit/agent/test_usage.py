"""What ranks use: CPU, memory and GPUs, read from real processes and a stand-in for NVML."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.patience import until
from trainyard_agent.activity import Activity
from trainyard_agent.gpus import Gpu, Gpus
from trainyard_agent.ranks import Rank
from trainyard_agent.usage import RankUsage, exposition, network

# NVML of a machine with two GPUs, whose second is busy.
NVML = """
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
static int devices[2] = {0, 1};
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    *handle = &devices[index];
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *handle, unsigned *rates) {
    rates[0] = *(int *)handle ? 90 : 0;
    rates[1] = *(int *)handle ? 40 : 0;
    return 0;
}
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
    memory[0] = 80; memory[1] = 50; memory[2] = *(int *)handle ? 30 : 1;
    return 0;
}
"""


@pytest.fixture(scope="module")
def gpus(tmp_path_factory: pytest.TempPathFactory) -> Gpus:
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "nvml.c")], check=True
    )
    return Gpus(str(library))


def test_a_rank_has_the_gpu_of_its_local_rank(gpus: Gpus) -> None:
    assert gpus.of_rank(1, {}) == Gpu(0.9, 0.4, 30)
    assert gpus.of_rank(0, {"CUDA_VISIBLE_DEVICES": "1"}) == Gpu(0.9, 0.4, 30)
    assert gpus.of_rank(1, {"CUDA_VISIBLE_DEVICES": "1,0"}) == Gpu(0.0, 0.0, 1)
    assert gpus.of_rank(2, {}) is None
    assert gpus.of_rank(1, {"CUDA_VISIBLE_DEVICES": "0"}) is None
    assert gpus.of_rank(0, {"CUDA_VISIBLE_DEVICES": ""}) is None  # it may not use any
    assert gpus.of_rank(0, {"CUDA_VISIBLE_DEVICES": "GPU-8f2b"}) is None


def test_without_a_driver_there_are_no_gpus() -> None:
    assert Gpus("libnvidia-ml-is-not-here.so.1").of_rank(0, {}) is None


def test_the_cpu_time_and_memory_of_what_a_rank_starts_count() -> None:
    child = "bytearray(64 << 20)\nwhile True: pass"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    try:
        activity = Activity(Rank(process.pid, 0, 0, 0, 1, 1), time.monotonic(), Gpus("none.so"))

        def used() -> bool:
            activity.look(time.monotonic(), float("inf"))
            return activity.usage is not None and activity.usage.cpu_seconds > 0.5

        until(used, "its child's CPU time is counted")
        assert activity.usage is not None
        assert activity.usage.memory > 10 << 20
        assert activity.waiting(time.monotonic()) < 5
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def test_usage_is_exported_by_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINYARD_TERMINATION_LOG", "/dev/termination-log")
    usages = [RankUsage(2, 1.5, 100), RankUsage(3, 2.5, 200, Gpu(0.9, 0.4, 30))]
    families = {
        family.name: {sample.labels.get("rank"): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(exposition("mine", usages))
    }
    assert families["trainyard_agent_rank_cpu_seconds"] == {"2": 1.5, "3": 2.5}
    assert families["trainyard_agent_rank_memory_bytes"] == {"2": 100, "3": 200}
    assert families["trainyard_agent_rank_gpu_utilization_ratio"] == {"3": 0.9}
    assert families["trainyard_agent_rank_gpu_memory_bytes"] == {"3": 30}
    assert set(families["trainyard_agent_network_receive_bytes"]) == {None}


def test_the_loopback_device_is_not_counted() -> None:
    lines = Path("/proc/net/dev").read_text().splitlines()[2:]
    devices = {line.split(":")[0].strip(): line.split(":")[1].split() for line in lines}
    others = sum(int(fields[0]) for name, fields in devices.items() if name != "lo")
    received, _ = network()
    assert received >= others

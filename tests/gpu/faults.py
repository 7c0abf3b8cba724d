"""Whether a fault on the device ends a run with one line that names it."""

from collections.abc import Iterator

from tests.gpu.rows import Row, not_here, says
from tests.gpu.setting import Setting, last_line
from tests.support.trainer.ranks import Run

HANG_SECONDS = 5
HANG = r"no progress for \d+ s: rank 0 \(\S+, pid \d+\) hangs in step [78] at "


def hanging(setting: Setting) -> Iterator[Row]:
    """A rank that waits too long for its GPU is named, with its stack."""
    config = {"hang_timeout_seconds": HANG_SECONDS}
    run = setting.run(setting.job("a hang", config=config), "hang:6")
    yield says("the rank that hangs is named", run.err, HANG)
    # A GPU's work is awaited where its results are read.
    where = r"loop\.py:\d+ Loop\._(read_losses|train_step)"
    where = where if setting.on_gpu else r"plants\.py:\d+ hang"
    yield says("and where it hangs, in its stack", run.err, rf"^    .*{where}")
    yield _one_line("a hang's reason is one line", run, "^HangError: ")


def running_out(setting: Setting) -> Iterator[Row]:
    """Too little memory is one line with the sizes and the device."""
    run = setting.run(setting.job("out of memory"), "memory:6")
    sizes = "GPU 0, GPU-.*Tried to allocate 1048576" if setting.on_gpu else "1125899906842624 bytes"
    yield _one_line(
        "out of memory",
        run,
        f"^OutOfMemoryError: the batch of step 7 doesn't fit into memory: .*{sizes}",
    )


def broken_kernels(setting: Setting) -> Iterator[Row]:
    """Faults that only a GPU has."""
    kernel, shared = "an index outside its tensor", "two ranks on one GPU"
    few = "more ranks than GPUs"
    if not setting.on_gpu:
        for what in (kernel, shared, few):
            yield not_here(what, "one line that names the GPU")
        return
    run = setting.run(setting.job(kernel), "index:6")
    yield _one_line(kernel, run, "^KernelError: in step 7: device-side assert triggered .*GPU 0")
    run = setting.run(setting.job(shared), ranks=2, LOCAL_RANK="0", CUDA_VISIBLE_DEVICES="0")
    yield _one_line(shared, run, "^ConfigError: .*use the same GPU")
    run = setting.run(setting.job(few), ranks=2, CUDA_VISIBLE_DEVICES="0")
    yield _one_line(few, run, "^ConfigError: numProcPerNode: process 1 has no GPU of its own")


def _one_line(what: str, run: Run, pattern: str) -> Row:
    """Whether a run failed with this reason, which its status has, and without a traceback."""
    if not any(run.codes.values()):
        return says(what, "it did not fail", pattern)
    if "Traceback" in run.err:
        return Row(what, f"a traceback: {last_line(run.err)}", pattern, False)
    return says(what, run.error_message(), pattern)

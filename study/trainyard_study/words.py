"""What is said of a study beside its tables: conditions, failures, the law. Pure."""

from trainyard_api.study import ScalingStudy, ScalingStudySpec
from trainyard_api.study_status import Interval, Machine, ScalingCurve
from trainyard_lifecycle.status import format_count
from trainyard_study.cells import short_names, value_text, varied
from trainyard_study.units import memory

BUSY = 0.5  # load per core, before the study began, at which figures say little


def law_lines(study: ScalingStudy) -> list[str]:
    """Of each configuration: the law and how well it fits, or why there is none."""
    lines = [_law_line(curve) for curve in study.status.curves]
    if any(point.too_wide for curve in study.status.curves for point in curve.points):
        lines.append(
            "Where only a range is given, the sizes measured don't carry that far: measure a larger"
            " one before you pay for it."
        )
    return lines


def _law_line(curve: ScalingCurve) -> str:
    head = f"{curve.label}: " if curve.label else ""
    law = curve.law
    if law is None:
        return f"{head}no scaling law: {curve.why_no_law}."
    sizes = ", ".join(map(str, law.sizes))
    figures = [f"{head}{law.choice} from {sizes} processes"]
    if law.undecided:
        return f"{figures[0]}: the projections weigh them all."
    if law.kind != "linear":
        figures.append(f"sigma {_law_figure(law.sigma)}")
    if law.kind == "usl":
        figures.append(f"kappa {_law_figure(law.kappa)}")
    figures.append(f"residual {law.residual:.1%}")
    if law.kappa.value > 0:
        figures.append(f"fastest on about {law.best_processes:.0f} processes")
    return f"{'; '.join(figures)}."


def failures(study: ScalingStudy) -> list[str]:
    """A line for every cell that failed."""
    lines = []
    for cell in study.status.cells:
        if failure := cell.failure:
            log = f" (log: {failure.log})" if failure.log else ""
            which = f"{cell.label}; repeat {failure.repeat}"
            lines.append(f"{which} failed: {failure.reason}: {failure.message}{log}")
    return lines


def conditions(spec: ScalingStudySpec, threads: int | None) -> str:
    """How it is measured, in a few words."""
    runs = "one run" if spec.repeats == 1 else f"{spec.repeats} interleaved runs"
    steps = f"of {spec.steps} steps after {spec.warmup_steps} of warm-up"
    each = f", {format_count(threads, 'thread')} per process" if threads else ""
    return f"{runs} {steps}{each}"


def notes(study: ScalingStudy) -> list[str]:
    """What to know when reading the tables."""
    spec, status = study.spec, study.status
    lines = [f"Each cell: {conditions(spec, status.threads_per_process)}."]
    if spec.repeats > 1:
        lines[0] += " Figures are medians, in brackets the least and the most."
    if status.completion_time is None:
        done = sum(len(cell.measurements) for cell in status.cells)
        lines.append(
            f"Unfinished: {format_count(done, 'run')} measured, medians are of what there is."
        )
    machine = status.machine
    if machine and machine.load is not None and machine.load > machine.cores * BUSY:
        lines.append(
            f"Other programs kept the machine busy (load {machine.load:.1f} on"
            f" {format_count(machine.cores, 'core')}): measure again when it is idle."
        )
    names = short_names(spec.matrix)
    if alike := [path for path in spec.matrix if path not in varied(spec.matrix)]:
        values = (f"{names[path]}={value_text(spec.matrix[path][0])}" for path in alike)
        lines.append(f"In every cell: {', '.join(values)}.")
    return lines


def machine_text(machine: Machine) -> str:
    """The machine in one line."""
    parts = [f"{machine.cores} x {machine.cpu}"]
    if machine.memory_bytes:
        parts[0] += f", {memory(machine.memory_bytes)}"
    parts += machine.gpus or ["no GPU"]
    parts.append(f"Python {machine.python}")
    if machine.torch:
        parts.append(f"torch {machine.torch}")
    if machine.load is not None:
        parts.append(f"load {machine.load:.1f} when it began")
    return ", ".join(parts)


def _law_figure(found: Interval) -> str:
    middle, least, most = (f"{x:.3g}" for x in (found.value, found.low, found.high))
    return middle if least == most == middle else f"{middle} ({least}–{most})"

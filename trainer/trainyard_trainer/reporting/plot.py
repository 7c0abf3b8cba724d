"""Draw a run's loss curve: `python -m trainyard_trainer.reporting.plot RUN_DIR NAME [--nice]`."""

import os
import sys
import tempfile
from pathlib import Path

from trainyard_storage.files import open_atomic
from trainyard_trainer.reporting.history import HISTORY_FILE, PICTURE_FILE, read_history


def draw(run_dir: Path, name: str) -> Path:
    """Draw RUN_DIR/metrics.jsonl into RUN_DIR/loss.png; written atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    records = read_history(run_dir / HISTORY_FILE)
    train = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
    held_out = [(r["step"], r["eval_loss"]) for r in records if r.get("eval_loss") is not None]
    restarts = [r["step"] for r in records if r.get("event") == "resumed"]

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if train:
        axes.plot(*zip(*train, strict=True), color="#4477aa", linewidth=1.2, label="training")
    if held_out:
        axes.plot(
            *zip(*held_out, strict=True),
            color="#cc6677",
            linewidth=1.5,
            marker="o",
            markersize=4,
            label="held out",
        )
        step, loss = held_out[-1]
        axes.annotate(
            f"{loss:.3f}", (step, loss), xytext=(0, 8), textcoords="offset points", ha="center"
        )
    for i, step in enumerate(restarts):
        label = "resumed from a checkpoint" if i == 0 else None
        axes.axvline(step, color="#888888", linestyle="--", linewidth=1, label=label)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats)")
    axes.set_title(f"{name}: loss")
    axes.grid(alpha=0.25)
    if train or held_out:
        axes.legend(frameon=False)
    picture = run_dir / PICTURE_FILE
    with open_atomic(picture, durable=False) as file:
        figure.savefig(file, format="png")
    return picture


def main() -> None:
    """Draw; a failure is one warning, never a failed run."""
    if "MPLCONFIGDIR" not in os.environ and not os.access(Path.home(), os.W_OK):
        os.environ["MPLCONFIGDIR"] = tempfile.gettempdir()  # matplotlib would warn that it does so
    if "--nice" in sys.argv:
        os.nice(19)
    try:
        draw(Path(sys.argv[1]), sys.argv[2])
    except Exception as error:
        print(f"warning: {PICTURE_FILE} was not drawn: {error}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Writes what comes from the code: docs/reference, the architecture, the tables of faults, the
drawings.
"""

from pathlib import Path

from docs.generate import (
    architecture,
    charts,
    cli,
    drawings,
    fields,
    metrics,
    recipes,
    sdk,
    troubleshooting,
)

REFERENCE = Path(__file__).parents[1] / "reference"


def pages() -> dict[Path, str]:
    """Each generated page, and what it has to say now."""
    return {
        REFERENCE / "trainingrun.md": fields.training_run(),
        REFERENCE / "scalingstudy.md": fields.scaling_study(),
        REFERENCE / "recipes.md": recipes.reference(),
        REFERENCE / "cli.md": cli.reference(),
        REFERENCE / "sdk.md": sdk.reference(),
        REFERENCE / "chart-operator.md": charts.reference("operator"),
        REFERENCE / "chart-serving.md": charts.reference("serving"),
        REFERENCE / "metrics.md": metrics.reference(),
        architecture.PAGE: architecture.page(),
        troubleshooting.PAGE: troubleshooting.page(),
    }


def pictures() -> dict[Path, str]:
    """Each drawing."""
    folder = REFERENCE.with_name("pictures")
    texts = drawings.pictures() | architecture.pictures()
    return {folder / name: text for name, text in texts.items()}


if __name__ == "__main__":
    for path, text in {**pages(), **pictures()}.items():
        path.write_text(text)

"""python -m monitoring: write the rules file and the dashboards into charts/operator."""

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from monitoring.alerts import GROUPS
from monitoring.dashboards import DASHBOARDS
from monitoring.rules import rules_file

ROOT = Path(__file__).parents[1]
CHART = ROOT / "charts" / "operator"


def dashboards() -> dict[str, str]:
    """The JSON of each dashboard, by name."""
    encoded = {
        name: json.dumps(each, cls=JSONEncoder, indent=1) for name, each in DASHBOARDS.items()
    }
    return {name: f"{text}\n" for name, text in encoded.items()}


def files() -> dict[Path, str]:
    """The text of each file that the chart ships, by path."""
    texts = {CHART / "dashboards" / f"{name}.json": text for name, text in dashboards().items()}
    return texts | {CHART / "rules" / "trainyard.yaml": rules_file(GROUPS)}


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))

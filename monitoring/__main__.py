"""python -m monitoring: write the rules file and the dashboards into charts/operator."""

import json
import sys
from pathlib import Path

from monitoring.alerts import GROUPS
from monitoring.dashboards import DASHBOARDS
from monitoring.rules import rules_file

CHART = Path(__file__).parents[1] / "charts" / "operator"


def files() -> dict[Path, str]:
    """What the chart ships, by path."""
    written = {CHART / "rules" / "trainyard.yaml": rules_file(GROUPS)}
    for dashboard in DASHBOARDS:
        text = json.dumps(dashboard.to_json(), indent=1) + "\n"
        written[CHART / "dashboards" / f"{dashboard.name}.json"] = text
    return written


def main() -> int:
    for path, text in files().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(CHART.parents[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

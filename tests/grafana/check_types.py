"""Holds the dashboards to Grafana's own types of dashboards and panels; needs npm, not in the gate.

    npm install --prefix DIR @grafana/schema@13.2.3 typescript@5
    python -m tests.grafana.check_types DIR

A key that Grafana doesn't know, or a value of another type, is an error of the TypeScript compiler.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitoring.dashboards import DASHBOARDS

TYPES = "./node_modules/@grafana/schema/dist/types/raw"
# Enums are written as their values, and what Grafana has defaults for may be left out.
LOOSE = """\
type Loose<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends (infer U)[] ? Loose<U>[]
  : T extends object ? { [K in keyof T]?: Loose<T[K]> }
  : T;
"""


def statements() -> Iterator[str]:
    """TypeScript that compiles when all is well."""
    yield f'import type * as dashboard from "{TYPES}/dashboard/x/types.gen";'
    dashboards = [each.to_json() for each in DASHBOARDS]
    panels = [panel for each in dashboards for panel in _panels(each)]
    for kind in sorted({panel["type"] for panel in panels}):
        yield f'import type * as {kind} from "{TYPES}/composable/{kind}/panelcfg/x/types.gen";'
    yield LOOSE
    for number, each in enumerate(dashboards):
        yield _typed(f"dashboard{number}", "dashboard.Dashboard", each)
    for number, panel in enumerate(panels):
        yield _typed(f"options{number}", f"{panel['type']}.Options", panel["options"])
        if custom := panel["fieldConfig"]["defaults"].get("custom"):
            yield _typed(f"custom{number}", f"{panel['type']}.FieldConfig", custom)


def _panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    every = [inner for row in dashboard["panels"] for inner in [row, *row.get("panels", [])]]
    return [panel for panel in every if panel["type"] != "row"]


def _typed(name: str, kind: str, value: object) -> str:
    return f"export const {name}: Loose<{kind}> = {json.dumps(value)};"


def main(directory: Path) -> int:
    """The compiler's exit status."""
    (directory / "check.ts").write_text("\n".join(statements()) + "\n")
    options = ["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"]
    modules = ["--module", "esnext", "--moduleResolution", "bundler"]
    tsc = [str(directory.resolve() / "node_modules/.bin/tsc"), *options, *modules, "check.ts"]
    return subprocess.run(tsc, cwd=directory, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

"""Check the dashboards against Grafana's TypeScript types; needs npm, not part of the gate.

    npm install --prefix DIR @grafana/schema@13.2.3 typescript@5
    python -m tests.grafana.check_types DIR

The SDK that builds the dashboards has the types of one version of Grafana. This checks its JSON
against those of another one: the TypeScript compiler reports keys that Grafana doesn't know and
values of another type.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monitoring.__main__ import dashboards

TYPES = "./node_modules/@grafana/schema/dist/types/raw"
# Enums are written as their values, and keys with a default in Grafana may be absent.
LOOSE = """\
type Loose<T> = unknown extends T ? T
  : T extends string ? `${T}`
  : T extends (infer U)[] ? Loose<U>[]
  : T extends object ? { [K in keyof T]?: Loose<T[K]> }
  : T;
"""
# The SDK writes these, but they have no effect here: settings of interval variables, and the
# hidden footer of tables, which Grafana 13 no longer has.
IGNORED_IN_VARIABLES = {"auto", "auto_min", "auto_count"}
IGNORED_IN_TABLES = {"footer"}


def statements() -> Iterator[str]:
    """TypeScript that compiles if the dashboards are valid."""
    yield f'import type * as dashboard from "{TYPES}/dashboard/x/types.gen";'
    documents = [json.loads(text) for text in dashboards().values()]
    panels = [panel for document in documents for panel in _panels(document)]
    for kind in sorted({panel["type"] for panel in panels}):
        yield f'import type * as {kind} from "{TYPES}/composable/{kind}/panelcfg/x/types.gen";'
    yield LOOSE
    for number, document in enumerate(documents):
        variables = document["templating"]["list"]
        variables[:] = [_without(each, IGNORED_IN_VARIABLES) for each in variables]
        yield _typed(f"dashboard{number}", "dashboard.Dashboard", document)
    for number, panel in enumerate(panels):
        ignored = IGNORED_IN_TABLES if panel["type"] == "table" else set()
        options = _without(panel["options"], ignored)
        yield _typed(f"options{number}", f"{panel['type']}.Options", options)
        if custom := panel["fieldConfig"]["defaults"].get("custom"):
            yield _typed(f"custom{number}", f"{panel['type']}.FieldConfig", custom)


def _panels(document: dict[str, Any]) -> list[dict[str, Any]]:
    panels = [inner for panel in document["panels"] for inner in [panel, *panel.get("panels", [])]]
    return [panel for panel in panels if panel["type"] != "row"]


def _without(values: dict[str, Any], keys: set[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


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

"""The tree and the drawings of docs/architecture.md, from the code's own imports."""

import ast
import html
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "architecture.md"

PACKAGES = (
    "api",
    "storage",
    "lifecycle",
    "study",
    "operator",
    "trainer",
    "agent",
    "sdk",
    "local",
    "cli",
    "serving",
    "dashboard",
)
# Folders without a package of ours, described here; packages say it in their own first line.
OTHERS = {
    "charts": "Helm charts: `operator/` and `serving/`, with rules and Grafana dashboards.",
    "docs": "These pages, and what generates the reference.",
    "examples": "A commented manifest for each use.",
    "images": "A Containerfile per image, and locked requirements.",
    "tests": "`unit/`, `system/`, `charts/`, `e2e/`, `soak/`, `bench/`: see its README.",
}

BOX, ROW, GAP, MARGIN = 150, 96, 26, 20  # pixels

Graph = Mapping[str, set[str]]


def package_folder(package: str) -> Path:
    return ROOT / package / module_of(package)


def module_of(package: str) -> str:
    """What is imported: `import trainyard` is for scripts of others."""
    return "trainyard" if package == "sdk" else f"trainyard_{package}"


def imports_of(files: Iterable[Path]) -> set[str]:
    """Dotted names that the files import."""
    names: set[str] = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def package_graph() -> Graph:
    """Package -> the packages it imports."""
    graph = {}
    for package in PACKAGES:
        names = {name.split(".")[0] for name in imports_of(package_folder(package).rglob("*.py"))}
        graph[package] = {p for p in PACKAGES if p != package and module_of(p) in names}
    return graph


def trainer_graph() -> Graph:
    """Folder or module of the trainer -> those it imports."""
    folder = package_folder("trainer")
    rooms = {
        path.stem: list(path.rglob("*.py")) if path.is_dir() else [path]
        for path in sorted(folder.iterdir())
        if (path.is_dir() and path.name != "__pycache__")
        or (path.suffix == ".py" and not path.stem.startswith("__"))
    }
    graph = {}
    for room, files in rooms.items():
        parts = {
            name.split(".")[1]
            for name in imports_of(files)
            if name.startswith("trainyard_trainer.")
        }
        graph[room] = {other for other in rooms if other != room and other in parts}
    return graph


def levels(graph: Graph) -> dict[str, int]:
    """How far above the bottom each node stands: one more than the highest it imports.

    One that imports nothing stands just below the lowest that imports it, so that no arrow to it
    passes behind others.
    """
    level: dict[str, int] = {}

    def visit(node: str, above: tuple[str, ...]) -> int:
        if node in above:
            raise ValueError(f"imports form a circle: {' -> '.join([*above, node])}")
        if node not in level:
            level[node] = 1 + max((visit(n, (*above, node)) for n in graph[node]), default=-1)
        return level[node]

    for node in graph:
        visit(node, ())
    for node in [node for node in graph if not graph[node]]:
        importers = [level[n] for n in graph if node in graph[n]]
        level[node] = min(importers, default=1) - 1
    return level


def direct(graph: Graph) -> Graph:
    """The imports that don't follow from others: drawing them all would hide the shape."""

    def reachable(node: str) -> set[str]:
        return graph[node].union(*(reachable(n) for n in graph[node])) if graph[node] else set()

    return {
        node: {n for n in targets if not any(n in reachable(o) for o in targets - {n})}
        for node, targets in graph.items()
    }


def drawing(graph: Graph, title: str) -> str:
    """An SVG: who imports whom, importers above. It follows the reader's light or dark scheme."""
    level = levels(graph)
    rows = [[n for n in graph if level[n] == height] for height in range(max(level.values()) + 1)]
    widest = max(map(len, rows))
    width = widest * BOX + (widest - 1) * GAP + 2 * MARGIN
    height = len(rows) * ROW - (ROW - 40) + 2 * MARGIN
    at: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        # A node stands as close as it can above what it imports, so that arrows are short.
        row.sort(key=lambda n: sum(at[t][0] for t in graph[n]) / max(1, len(graph[n])) or width / 2)
        left = (width - len(row) * BOX - (len(row) - 1) * GAP) / 2
        for column, node in enumerate(row):
            at[node] = (left + column * (BOX + GAP) + BOX / 2, height - MARGIN - 20 - number * ROW)
    arrows, boxes = [], []
    for node, targets in direct(graph).items():
        for target in sorted(targets):
            (x, y), (tx, ty) = at[node], at[target]
            bend = (ty - y) / 2
            curve = (
                f"M{x:.0f} {y + 20:.0f} C{x:.0f} {y + 20 + bend / 2:.0f}"
                f" {tx:.0f} {ty - 24 - bend / 2:.0f} {tx:.0f} {ty - 24:.0f}"
            )
            arrows.append(f'<path d="{curve}" marker-end="url(#to)"/>')
    for node, (x, y) in at.items():
        boxes.append(
            f'<rect x="{x - BOX / 2:.0f}" y="{y - 20:.0f}" width="{BOX}" height="40" rx="6"/>'
            f'<text x="{x:.0f}" y="{y + 5:.0f}">{html.escape(node)}</text>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">',
            f"<title>{html.escape(title)}</title>",
            "<style>",
            "rect{fill:#e7f3f1;stroke:#0f766e;stroke-width:1.2}",
            "text{font:15px system-ui,sans-serif;text-anchor:middle;fill:#134e4a}",
            "path{fill:none;stroke:#64748b;stroke-width:1.3}marker path{fill:#64748b;stroke:none}",
            "@media (prefers-color-scheme:dark){rect{fill:#134e4a;stroke:#5eead4}text{fill:#f0fdfa}"
            "path{stroke:#94a3b8}marker path{fill:#94a3b8}}",
            "</style>",
            '<defs><marker id="to" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="8"'
            ' markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
            *arrows,
            *boxes,
            "</svg>\n",
        ]
    )


def tree() -> str:
    """The top-level folders, and the folders of packages, each with its one job."""
    rows = []
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    folders = {name.split("/")[0] for name in listed if "/" in name and (ROOT / name).is_file()}
    for folder in sorted(name for name in folders if not name.startswith(".")):
        package = package_folder(folder) if folder in PACKAGES else ROOT / folder
        rows.append(f"| `{folder}/` | {OTHERS.get(folder) or first_line(package)} |")
        if folder != "tests":
            shown = f"{folder}/…" if folder in PACKAGES else folder
            inside = sorted(path.parent for path in package.glob("*/__init__.py"))
            rows += [f"| `{shown}/{path.name}/` | {first_line(path)} |" for path in inside]
    return "\n".join(["| folder | what it does |", "|---|---|", *rows])


def first_line(package: Path) -> str:
    """The first line of a package's docstring."""
    text = ast.get_docstring(ast.parse((package / "__init__.py").read_text()))
    if not text:
        raise ValueError(f"{package}/__init__.py has no docstring")
    return text.splitlines()[0]


def page() -> str:
    """The page with today's tree."""
    return re.sub(
        r"(<!-- tree -->\n).*?(<!-- /tree -->)",
        lambda found: f"{found[1]}{tree()}\n{found[2]}",
        PAGE.read_text(),
        flags=re.DOTALL,
    )


def pictures() -> dict[str, str]:
    """The drawings, by file name."""
    return {
        "packages.svg": drawing(package_graph(), "Imports between the packages"),
        "trainer.svg": drawing(trainer_graph(), "Imports inside the trainer"),
    }

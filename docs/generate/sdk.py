"""docs/reference/sdk.md: what `import trainyard` has, from the docstrings of its public names."""

import ast
import inspect
import re
from pathlib import Path

SDK = Path(__file__).parents[2] / "sdk" / "trainyard"
HEAD = """\
# import trainyard

What a script of your own can use. [Your own script](../guides/your-script.md) shows how. This page
is generated from the docstrings by `make reference`.

`trainyard.init()`, `report`, `log_sample` and `should_stop` need Python 3.9 and nothing else.
`Checkpointer`, `StepSampler`, `publish` and `start_from` need Python 3.11 and
`pip install 'trainyard[checkpoint]'`; `publish(golden=...)` also needs transformers. Names that
begin with an underscore may change in any version; changes of the others are listed in the
changelog. A checkpoint says which version of its format it has; a version that is newer than the
installed package knows is refused.
"""
# Module, name, and how a script writes it.
PUBLIC = (
    ("run.py", "init", "trainyard.init"),
    ("run.py", "Run", "Run"),  # made by init
    ("checkpointer.py", "Checkpointer", "trainyard.Checkpointer"),
    ("data.py", "StepSampler", "trainyard.StepSampler"),
    ("transformers.py", "TrainyardCallback", "trainyard.transformers.TrainyardCallback"),
    ("lightning.py", "TrainyardCallback", "trainyard.lightning.TrainyardCallback"),
    ("accelerate.py", "TrainyardTracker", "trainyard.accelerate.TrainyardTracker"),
)
Documented = ast.FunctionDef | ast.ClassDef
_SECTION = re.compile(r"^(Args|Attributes):$")
_INHERITED = ("on_", "store_", "log", "tracker")  # methods that the framework calls


def reference() -> str:
    """The page, in Markdown."""
    parts = [HEAD]
    for file, name, shown in PUBLIC:
        node = next(
            each
            for each in ast.parse((SDK / file).read_text()).body
            if isinstance(each, Documented) and each.name == name
        )
        parts.append(f"\n## {shown}\n\n{_entry(node, shown)}")
        if isinstance(node, ast.ClassDef):
            parts += [f"\n### {each.name}\n\n{_entry(each, each.name)}" for each in _methods(node)]
    return "".join(parts)


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    callback = node.name.startswith("Trainyard")
    return [
        each
        for each in node.body
        if isinstance(each, ast.FunctionDef)
        and not each.name.startswith("_")
        and ast.get_docstring(each)
        and not (callback and each.name.startswith(_INHERITED))
    ]


def _entry(node: Documented, shown: str) -> str:
    """The signature and the docstring."""
    function = node if isinstance(node, ast.FunctionDef) else _constructor(node)
    docstring = ast.get_docstring(node) or ""
    arguments = "" if function is None else _arguments(function)
    if isinstance(node, ast.ClassDef) and not arguments and node.name == "Run":
        return f"{_markdown(docstring)}\n"
    returns = ""
    if isinstance(node, ast.FunctionDef) and node.returns is not None:
        returns = f" -> {ast.unparse(node.returns)}"
    signature = f"{shown}({arguments}){returns}"
    if isinstance(node, ast.FunctionDef) and node.decorator_list:  # a property
        signature = f"{shown}: {returns.removeprefix(' -> ')}"
    return f"```python\n{signature}\n```\n\n{_markdown(docstring)}\n"


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    return next(
        (e for e in node.body if isinstance(e, ast.FunctionDef) and e.name == "__init__"), None
    )


def _arguments(function: ast.FunctionDef) -> str:
    text = ast.unparse(function.args)
    return text.removeprefix("self").removeprefix(", ")


def _markdown(docstring: str) -> str:
    """Paragraphs, code as it is, and a list for the sections of arguments and attributes."""
    lines: list[str] = []
    in_section = False
    for line in inspect.cleandoc(docstring).splitlines():
        if _SECTION.match(line):
            in_section = True
            lines += [f"*{line}*", ""]
        elif in_section and line.startswith("    ") and not line.startswith("     "):
            names, _, text = line.strip().partition(": ")
            lines.append(f"- `{names.replace(', ', '`, `')}`: {text}" if text else f"  {names}")
        elif in_section and line.startswith("     "):
            lines.append(f"  {line.strip()}")
        else:
            in_section = in_section and not line.strip()
            lines.append(line)
    return "\n".join(lines)

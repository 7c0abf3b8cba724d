"""docs/reference/cli.md: every command of `trainyard`, from its argument parser."""

import argparse
from collections.abc import Iterator

from trainyard_cli.main import _parser

HEAD = """\
# The trainyard command

`trainyard` trains, watches and serves runs on this machine, without Kubernetes; what each command
does is explained in [the guide](../guides/local.md). It comes with the package:
`pip install 'trainyard[trainer,serving]'`. This page is generated from the command's own parser by
`make reference`; `trainyard COMMAND --help` prints the same.

| command | |
|---|---|
"""
FOOT = """
## Exit status

| status | |
|---|---|
| 0 | success; of `run`: the run succeeded; of `study`: every cell was measured |
| 1 | the run, a cell of the study or the system (a full disk) failed; `estimate`: it does not fit |
| 2 | the request was refused: one line on standard error says what to change |
| 130 | interrupted (Ctrl-C) |
"""


def reference() -> str:
    """The page, Markdown."""
    commands = list(_commands(_parser()))
    rows = [
        f"| [{name}](#trainyard-{name.replace(' ', '-')}) | {_sentence(what)} |\n"
        for name, what, _ in commands
    ]
    sections = [_section(name, what, parser) for name, what, parser in commands]
    return HEAD + "".join(rows) + "".join(sections) + FOOT


def _commands(
    parser: argparse.ArgumentParser, prefix: str = ""
) -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, inner in action.choices.items():
                if inner.get_default("handler"):  # else it only groups others
                    yield f"{prefix}{name}", helps[name], inner
                yield from _commands(inner, f"{prefix}{name} ")


def _section(name: str, what: str, parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    text = f"\n## trainyard {name}\n\n{_sentence(what)}\n\n    {usage}\n"
    actions = [
        each
        for each in parser._actions
        if not isinstance(each, argparse._HelpAction | argparse._SubParsersAction)
    ]
    if actions:
        text += "\n| argument | default | description |\n|---|---|---|\n"
        text += "".join(_row(action) for action in actions)
    return text


def _row(action: argparse.Action) -> str:
    shown = str(action.metavar or action.dest.upper())
    if action.option_strings:
        takes = "" if action.nargs == 0 else f" {shown}"
        name = ", ".join(f"`{flag}{takes}`" for flag in action.option_strings)
    else:
        name = f"`{shown}`" + (" (one or more)" if action.nargs == "+" else "")
    default = "required" if action.required and not action.option_strings else _default(action)
    what = _sentence(action.help or "")
    if action.choices:
        what += f" One of {', '.join(f'`{choice}`' for choice in action.choices)}."
    return f"| {name} | {default} | {what} |\n"


def _default(action: argparse.Action) -> str:
    if action.default in (None, False, argparse.SUPPRESS):
        return ""
    return f"`{action.default}`"


def _sentence(text: str) -> str:
    text = text.replace("|", "\\|")
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""

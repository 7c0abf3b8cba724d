"""`python -m trainyard_dashboard`: the dashboard's server."""

import argparse
import sys

from trainyard_dashboard.settings import DashboardSettings
from trainyard_serving.program import App, fail, prepare_logging, serve_app
from trainyard_serving.settings import SettingsError, add_flags

PROGRAM = "trainyard_dashboard"
APP = App(
    "a page about runs, scaling, cost and served models; it changes nothing",
    DashboardSettings,
    "trainyard_dashboard.app",
    "create_dashboard_app",
)


def main() -> int:
    """Exit status: 0 when all went well, 1 for what the user can mend (one line says what)."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=f"Show {APP.help}. Every flag can also be set by the variable in [].",
    )
    add_flags(parser, APP.settings)
    prepare_logging()
    try:
        return serve_app(PROGRAM, APP, parser.parse_args())
    except SettingsError as error:
        return fail(PROGRAM, str(error))


if __name__ == "__main__":
    sys.exit(main())

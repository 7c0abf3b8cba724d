"""`python -m trainyard_dashboard`: the dashboard's server."""

import sys

from trainyard_dashboard.settings import PROGRAM, read_settings
from trainyard_serving.server import fail, prepare_logging
from trainyard_serving.settings import SettingsError


def main() -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns the exit status: 0, or 1 after an error that the user can correct (printed as one line).
    """
    prepare_logging()
    try:
        settings = read_settings(sys.argv[1:])
    except SettingsError as error:
        return fail(PROGRAM, str(error))
    # Imported late, so that wrong flags are reported without the seconds these take.
    from trainyard_dashboard.app import create_dashboard_app
    from trainyard_serving.server import ListenError, listen, serve

    try:
        sock = listen(settings.host, settings.port)
    except ListenError as error:
        return fail(PROGRAM, str(error))
    serve(create_dashboard_app(settings), sock, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())

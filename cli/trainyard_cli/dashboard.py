"""`trainyard dashboard`: starts the dashboard on this machine, as a program of its own."""

import os
import sys
import webbrowser

from trainyard_cli.serving_process import HOST, check_port, end, start, wait_until_ready

PORT = 8050


def dashboard(port: int | None, flags: list[str], open_browser: bool) -> int:
    """Show the dashboard until Ctrl-C; returns the exit status. Raises UserError."""
    port = check_port(PORT if port is None else port)
    with start(["trainyard_dashboard"], port, flags) as server:
        try:
            wait_until_ready(server, port, say=False)
            url = f"http://{HOST}:{port}"
            print(f"The dashboard is at {url} (Ctrl-C ends it).", flush=True)
            if open_browser and _has_screen():
                webbrowser.open(url)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            end(server)


def _has_screen() -> bool:
    """Without one, `webbrowser` would start a browser of the terminal, over our own words."""
    return sys.platform == "darwin" or any(
        os.environ.get(n) for n in ("DISPLAY", "WAYLAND_DISPLAY")
    )

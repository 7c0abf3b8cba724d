"""`python -m trainyard_operator`: the operator, in a cluster or beside one (KUBECONFIG)."""

import asyncio
import logging
import sys
from typing import Any

from pydantic import ValidationError
from pythonjsonlogger.json import JsonFormatter

from trainyard_api.base import validation_message
from trainyard_operator import app
from trainyard_operator.client import ApiError
from trainyard_operator.settings import Settings


class _LineFormatter(JsonFormatter):
    """One JSON object a line: time, level, logger, message and, where there are any, run, error."""

    def __init__(self) -> None:
        super().__init__(
            ["levelname", "name", "message", "run", "exc_info"],
            rename_fields={"levelname": "level", "name": "logger", "exc_info": "error"},
            timestamp="time",
        )

    def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
        fields = ("time", "level", "logger", "message", "run", "error")
        line = {name: log_data[name] for name in fields if log_data.get(name) is not None}
        return line | {"level": line["level"].lower()}


def log_handler(log_format: str) -> logging.Handler:
    """Writes to standard error, as `json` or `text`."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        _LineFormatter()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    return handler


async def _main() -> int:
    try:
        settings = Settings()
    except ValidationError as error:
        print(f"trainyard-operator: {validation_message(error)}", file=sys.stderr)
        return 2
    logging.basicConfig(level=logging.INFO, handlers=[log_handler(settings.log_format)], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        await app.run(settings)
    except app.FatalError as error:
        logging.error("%s", error)
        return 1
    except ApiError as error:
        hint = ": are the chart's CRDs installed?" if error.status == 404 else ""
        logging.error("%s%s", error, hint)
        return 1
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        logging.error("cannot serve on %s (TRAINYARD_PORT): %s", address, error.strerror)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))

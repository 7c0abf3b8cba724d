"""`python -m trainyard_operator`: the operator, in a cluster or beside one (KUBECONFIG)."""

import asyncio
import json
import logging
import sys
from datetime import UTC, datetime


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if run := getattr(record, "run", None):
            line["run"] = run
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log(log_format: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(
        _Json()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)


async def _main() -> int:
    from trainyard_operator import app
    from trainyard_operator.errors import ApiError
    from trainyard_operator.settings import Settings

    try:
        settings = Settings.from_env()
    except ValueError as error:
        print(f"trainyard-operator: {error}", file=sys.stderr)
        return 2
    _log(settings.log_format)
    try:
        await app.run(settings)
    except app.StoppedError as error:
        logging.error("%s", error)
        return 1
    except ApiError as error:
        hint = ": are the chart's CRDs installed?" if error.status == 404 else ""
        logging.error("%s%s", error, hint)
        return 1
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        logging.error("can't serve on %s (TRAINYARD_PORT): %s", where, error.strerror)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))

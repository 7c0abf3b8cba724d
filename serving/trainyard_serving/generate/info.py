"""/info: the model, the limits of requests and the versions of the server. It holds no secrets."""

import functools
import platform
from importlib.metadata import version

from fastapi import FastAPI

from trainyard_api import __version__
from trainyard_serving.generate.engine import Engine, JsonDict
from trainyard_serving.settings import GenerateSettings

LIBRARIES = ("torch", "transformers", "tokenizers")


def add_info(app: FastAPI, settings: GenerateSettings, engine: Engine) -> None:
    """Add the route to `app`."""

    async def info() -> JsonDict:
        """The model, the limits of requests, and the versions of the server."""
        card = engine.model_card()
        return {
            "model": {
                "id": card.name,
                "step": card.step,
                "digest": card.digest,
                "max_model_len": card.context_length,
                "chat": card.has_chat_template,
            },
            "limits": limits(settings)
            | {"max_queue": settings.max_queue, "max_body_bytes": settings.max_body_bytes},
            "engine": settings.engine,
            "version": __version__,
            "versions": versions(),
        }

    app.add_api_route("/info", info, response_model=None)


def limits(settings: GenerateSettings) -> JsonDict:
    """What a request may ask for at most."""
    return {"max_tokens": settings.max_tokens, "max_prompts": settings.max_prompts}


@functools.cache  # each is read from a file
def versions() -> dict[str, str]:
    """Of Python and the libraries that compute answers."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}

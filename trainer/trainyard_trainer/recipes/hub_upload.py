"""Sending an exported model to the Hugging Face Hub."""

import os
from pathlib import Path

from trainyard_api.checkpoint import MANIFEST
from trainyard_api.golden import EVALUATION, GOLDEN
from trainyard_trainer.errors import UserError

OURS = (MANIFEST, GOLDEN, EVALUATION)


class UploadError(UserError):
    """The model could not be sent; the run keeps it."""


def upload_model(directory: Path, hub_model_id: str, private: bool) -> str:
    """Send the files of `directory` in one commit; the URL of the repository.

    What is for this run's own servers stays here: the manifest, and held-out texts in particular.

    The repository is made if need be. The token is that of the environment variable HF_TOKEN.
    Raises UploadError.
    """
    from huggingface_hub import HfApi

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UploadError(
            f"config.hub_model_id: set HF_TOKEN to a token that may write to {hub_model_id}"
        )
    try:
        api = HfApi(token=token)
        url = api.create_repo(hub_model_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=directory,
            commit_message=f"Trained: {directory.name}",
            ignore_patterns=list(OURS),
        )
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UploadError(f"config.hub_model_id: {hub_model_id}: {reason}") from None
    return str(url)

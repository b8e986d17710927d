"""A model folder -> a model repository of the Hugging Face Hub, by the Hub's own client."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

from dino_path.errors import LaunchError
from dino_path.exporting.format_names import NAMES
from dino_path.records.model_folder import CARD_NAME, CONFIG_NAME, WEIGHTS_NAME

# The client's own error stands on its HTTP library's base class: requests' before 1.0, httpx's since.
HTTP_ERROR = next(
    base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)
)


def push_to_hub(folder: Path, repository: str) -> str:
    """Upload only the model files of `folder`; returns the commit's address.

    A missing repository is created as private; its owner can publish it.

    Args:
        repository: `owner/name`.

    Raises:
        LaunchError: the Hub cannot be reached, or refuses.
    """
    api = HfApi()
    try:
        api.create_repo(repository, repo_type="model", private=True, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[CONFIG_NAME, WEIGHTS_NAME, CARD_NAME, *NAMES.values()],
            commit_message="dino_path export",
        )
    except (HTTP_ERROR, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise LaunchError(
            f"--push-to-hub {repository}",
            f"the Hub did not accept it ({' '.join(str(error).split())[:300]}).",
            "A connection and a token with write access are needed (`hf auth login`).",
            f"The export itself is complete in {folder}; the same command tries again.",
        ) from None
    return str(commit)

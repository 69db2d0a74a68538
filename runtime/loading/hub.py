"""Downloads models from the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from runtime.errors import ModelUnavailable
from runtime.loading.model_files import CONFIG_FILES, MODULE_FILES, WEIGHT_FILES, has_weights
from runtime.model.catalogue import ModelSpec
from runtime.model.progress import Progress, bar_class


def download(spec: ModelSpec, progress: Progress) -> Path:
    """Download a model's newest revision to the hub client's cache.

    Args:
        spec: the model; if it names a revision, that one is downloaded.
        progress: progress callback.

    Returns:
        A folder in transformers' layout, named by its commit.

    Raises:
        ModelUnavailable: the model cannot be downloaded; the message says what to do.
    """

    def get(weights: str) -> Path:
        return Path(
            snapshot_download(
                spec.location,
                revision=spec.revision,
                allow_patterns=[*CONFIG_FILES, *MODULE_FILES, weights],
                tqdm_class=bar_class(progress, "downloading"),
            )
        )

    name = f"{spec.location}@{spec.revision}" if spec.revision else spec.location
    try:
        folder = get(WEIGHT_FILES[0])
        # Old repositories have pickled weights only; torch reads those without running code (weights_only).
        return folder if has_weights(folder) else get(WEIGHT_FILES[1])
    except GatedRepoError as error:
        raise ModelUnavailable(
            f"{name} asks for a licence to be accepted: do so on the hub and set HF_TOKEN"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelUnavailable(f"{name} does not exist on the hub, or needs HF_TOKEN; check MODEL_NAME") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(
            f"{name} is not on this disk and the hub cannot be reached; run `warmstart pull {name}` where it can, "
            "or set MODEL_NAME to a local folder, a .gguf file or smollm2-135m-instruct",
            retry_after=30,
        ) from error

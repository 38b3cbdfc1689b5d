"""Find a model's folder: on disk, in the package, or on the Hugging Face Hub."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ModelLoadError, shorten

BUNDLED_MODEL = "shop"
_ACCEPTED = "a model folder, 'shop' (the bundled model), or a Hugging Face Hub id 'organisation/name'"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights, configuration and tokenizer; never code, never pickles, nothing from subfolders.
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
_ETAG_TIMEOUT_S = 5.0


def bundled_model_folder() -> Path:
    """Folder of the bundled model in the installed package; it may not exist."""
    return Path(__file__).parents[2] / "shop" / "model"


def resolve_model_folder(path_or_id: str | Path) -> Path:
    """The folder that holds a model's files.

    `shop` is the bundled model (`./shop` a folder of that name). An existing folder is used as it is. Any other
    'organisation/name' is fetched from the Hub into its usual cache, or read from there if it is cached.

    Raises: ModelLoadError with field `model`.
    """
    return local_model_folder(path_or_id) or _download(str(path_or_id))


def local_model_folder(path_or_id: str | Path) -> Path | None:
    """As `resolve_model_folder`, but None for a name that reads as a Hub id."""
    text = str(path_or_id)
    if text == BUNDLED_MODEL and isinstance(path_or_id, str):
        folder = bundled_model_folder()
        if not folder.is_dir():
            raise ModelLoadError(
                "this installation of shoal lacks the bundled model 'shop'", field="model", value=text, limit=_ACCEPTED
            )
        return folder
    try:
        folder = Path(path_or_id).expanduser()
        is_folder, is_file = bool(text) and folder.is_dir(), folder.is_file()
    # The home folder of an unknown user, a name that is too long, a folder without permission.
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ModelLoadError(
            f"no model {shorten(text)}: {reason}; expected {_ACCEPTED}", field="model", value=text, limit=_ACCEPTED
        ) from error
    if is_folder:
        return folder
    if is_file:
        raise ModelLoadError(f"{text!r} is a file: expected {_ACCEPTED}", field="model", value=text, limit=_ACCEPTED)
    if isinstance(path_or_id, str) and _HUB_ID.fullmatch(text):
        return None
    raise ModelLoadError(f"no model {text!r}: expected {_ACCEPTED}", field="model", value=text, limit=_ACCEPTED)


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(hub_id, allow_patterns=_WANTED, ignore_patterns=["*/*"], etag_timeout=_ETAG_TIMEOUT_S)
        )
    # The client raises many kinds (its own, httpx's, OSError); any of them means that the model is unavailable.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelLoadError(
            f"no folder {hub_id!r} here, and fetching it from the Hugging Face Hub failed: "
            f"{type(error).__name__}: {reason[:300]}. Accepted: {_ACCEPTED}",
            field="model",
            value=hub_id,
            limit=_ACCEPTED,
        ) from error

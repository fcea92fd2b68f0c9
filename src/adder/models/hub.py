"""From what a user names as a model to a folder on this machine: a path, or a name on the Hugging Face Hub."""

import importlib.util
import re
from pathlib import Path

from adder.errors import UsageError
from adder.models.formats.weights import find_weights

_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONFIGS = ["config.json", "params.json", "tokenizer.json"]
# Safetensors before pickles, and never both.
_WEIGHTS = (
    ["model.safetensors", "model.safetensors.index.json", "model-*.safetensors"],
    ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"],
    ["consolidated.safetensors"],
)


def find_folder(path: str | Path) -> Path:
    """Return the folder of a model, which is downloaded where `path` is no folder but a name "owner/model".

    Raises:
        UsageError: there is no such folder, and it is no such name; or huggingface_hub, the network or the model on
            the Hub is missing.
    """
    folder, path = Path(path), str(path)
    if folder.exists() or not _ON_THE_HUB.fullmatch(path):
        return folder
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UsageError(
            f"{path} is no folder here; to get it from the Hugging Face Hub: pip install huggingface_hub"
        )
    return _download(path)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        for patterns in _WEIGHTS:
            folder = Path(snapshot_download(name, allow_patterns=[*_CONFIGS, *patterns]))
            if find_weights(folder) is not None:
                return folder
    except (LocalEntryNotFoundError, ConnectionError, TimeoutError) as error:
        raise UsageError(
            f"{name} is no folder here, it was not downloaded before, and the Hugging Face Hub cannot be reached: "
            f"{_line(error)}"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UsageError(
            f"{name} is no folder here, and the Hugging Face Hub says: {_line(error)}"
        ) from None
    raise UsageError(f"{name} on the Hugging Face Hub has no weights that adder reads")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

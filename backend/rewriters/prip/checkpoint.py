"""A refiner's folder: `config.json`, `model.safetensors` and the folders `encoder/`, `decoder/`, `image/`.

`encoder/` and `decoder/` are Hugging Face model folders. `model.safetensors` holds what belongs to neither:
queries, head, projector and the pivots' statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import PositiveInt, ValidationError

from ...core.config import Config, validation_message
from ...core.errors import CheckpointError, first_line
from ...core.model_files import quiet_loading
from ...storage.checksums import check_folder

if TYPE_CHECKING:
    from torch import Tensor

STATISTICS = ("pivot_mean", "pivot_std")


class PripConfig(Config):
    """`config.json` of a refiner's folder. `encoder/`, `decoder/` and `image/` have config files of their
    own."""

    model_type: Literal["prip"] = "prip"
    format: Literal[1] = 1
    queries: PositiveInt = 32  # vectors in a pivot
    width: PositiveInt = 768  # numbers in each vector
    window: PositiveInt = 512  # maximum tokens of a prompt for the encoder
    before: str = "Picture:"  # the decoder's text before the pivot
    after: str = "\nPrompt:\n"  # and after it; the prompt begins a line, so no leading space is lost


def is_own_weight(name: str) -> bool:
    """Whether a weight is in `model.safetensors`, not in a part's own folder."""
    return not name.startswith(("encoder.t5.", "decoder."))


def read_config(folder: Path) -> PripConfig:
    """The `config.json` in a refiner's folder. Raises CheckpointError."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(
            f"no refiner at {folder}: expected a folder with a config.json; give one that was trained"
        )
    try:
        return PripConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(
            f"{path} is no refiner's: {validation_message(error)}; give a PRIP folder"
        ) from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def read_own_weights(path: Path) -> dict[str, Tensor]:
    """Queries, head, projector and statistics. Raises CheckpointError if one of them is missing."""
    from safetensors.torch import load_file

    try:
        weights = load_file(path)
    except Exception as error:  # OSError, and what safetensors raises
        raise CheckpointError(f"cannot read {path}: {first_line(error)}; train the refiner again") from error
    if not all(name in weights for name in STATISTICS):
        raise CheckpointError(
            f"{path} has no pivot statistics (pivot_mean, pivot_std), without which pivots "
            "mean nothing; train the refiner's first stages"
        )
    for name in ("projector.weight", "encoder.queries.weight"):
        if name not in weights or weights[name].ndim != 2:
            raise CheckpointError(f"{path} lacks {name}; train the refiner again")
    return weights


def load_part(part: str, source: Path | str, load: Callable[[Path | str], Any]) -> Any:
    """`load(source)` for one part of a refiner: a folder in it, or a Hugging Face name.

    Raises CheckpointError if the folder is missing or `load` fails.
    """
    if isinstance(source, Path) and not source.is_dir():
        raise CheckpointError(
            f"{source.parent} is no whole refiner: it holds no folder {source.name!r}; copy it again"
        )
    try:
        with quiet_loading():
            return load(source)
    except CheckpointError:
        raise
    except Exception as error:  # transformers, tokenizers and safetensors raise many types
        raise CheckpointError(
            f"cannot load the {part} {source}: {first_line(error)}; fetch or train it again"
        ) from error


def load_t5(source: Path | str) -> tuple[Any, Any]:
    """(T5Model, tokenizer) of a folder or Hugging Face name. Raises CheckpointError for missing weights."""
    from transformers import AutoTokenizer, T5Model

    check_folder(Path(source))
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    loaded: Any = T5Model.from_pretrained(source, use_safetensors=True, output_loading_info=True)
    model, info = loaded
    lacking = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if lacking:
        raise CheckpointError(
            f"{len(lacking)} of its weights are missing or have another shape (first: {lacking[0]})"
        )
    return model, tokenizer


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 and 5 can both load it."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(settings.get("extra_special_tokens"), list):  # transformers 4 uses the old name
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

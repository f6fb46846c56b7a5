"""Where models are looked for; loading them without the libraries' own bars and notes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

FULL_HASH_BYTES = 64 * 2**20  # bytes up to which a file's or a model's whole content is hashed or checked
EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "shapeworld" / "weights"


def embedded_models(kind: str) -> dict[str, Path]:
    """What comes with the pack beside its default of a kind ("rewriters", …): name -> folder."""
    variants = sorted(EMBEDDED_WEIGHTS.glob(f"{kind.removesuffix('s')}-*"))
    return {f"embedded-{path.name.partition('-')[2]}": path for path in variants if path.is_dir()}


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes and contents of all configs and weights.

    Of a file beyond 64 MiB the header and 16 blocks spread over it stand for the whole.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".json", ".safetensors", ".txt", ".model") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}\n".encode())
        with open(path, "rb") as file:
            if size <= FULL_HASH_BYTES:
                digest.update(file.read())
                continue
            for block in range(17):
                file.seek(block * (size - 2**16) // 16)
                digest.update(file.read(2**16))
    return digest.hexdigest()


def model_folders() -> list[Path]:
    """Where `{renderers,rewriters,refiners,judges}` are looked for: $REPRISE_MODELS, the models
    folder of the ComfyUI that this pack lies in, `models/reprise` here."""
    folders = []
    if os.environ.get("REPRISE_MODELS"):
        folders.append(Path(os.environ["REPRISE_MODELS"]))
    pack = Path(__file__).resolve().parents[2]
    if pack.parent.name == "custom_nodes":
        folders.append(pack.parent.parent / "models" / "reprise")
    folders.append(Path("models") / "reprise")
    return folders


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """No progress bars, no warnings about what is an error here, no notes on renamed arguments."""
    from transformers.utils import logging as transformers_logging

    libraries = [transformers_logging]
    if find_spec("diffusers"):
        from diffusers.utils import logging as diffusers_logging

        libraries.append(diffusers_logging)
    before = [(library.is_progress_bar_enabled(), library.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
        library.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # Old and new diffusers and transformers disagree on the name of `torch_dtype`.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for library, (bars, verbosity) in zip(libraries, before, strict=True):
            if bars:
                library.enable_progress_bar()
            library.set_verbosity(verbosity)


def find_model(kind: str, name: str) -> Path | None:
    """The folder of the model that the user calls `name`, or None."""
    if Path(name).name != name:  # a path, not a name
        return None
    for root in model_folders():
        if (root / kind / name).is_dir():
            return root / kind / name
    return embedded_models(kind).get(name)


def installed_models(kind: str) -> list[str]:
    """Names of the models of a kind, sorted."""
    folders = (root / kind for root in model_folders())
    found = {p.name for folder in folders if folder.is_dir() for p in folder.iterdir() if p.is_dir()}
    return sorted(found | embedded_models(kind).keys())

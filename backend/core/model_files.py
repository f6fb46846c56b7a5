"""Model folders: where they are searched, their fingerprints, and loading without library output."""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

FULL_HASH_BYTES = 64 * 2**20  # files up to this size are hashed or checked whole, larger ones in samples
EMBEDDED_WEIGHTS = Path(__file__).parents[1] / "shapeworld" / "weights"


def embedded_models(kind: str) -> dict[str, Path]:
    """The embedded models of a kind ("rewriters", …) besides its default: name -> folder."""
    variants = sorted(EMBEDDED_WEIGHTS.glob(f"{kind.removesuffix('s')}-*"))
    return {f"embedded-{path.name.partition('-')[2]}": path for path in variants if path.is_dir()}


def user_path(text: str | Path) -> Path:
    """A path that a user wrote, with "~" for a home folder; "~nobody" of no such user stays as it is."""
    return Path(os.path.expanduser(text))


def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over the names, sizes and contents of all config and weight files, large ones sampled."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".json", ".safetensors", ".txt", ".model") or not path.is_file():
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}\n".encode())
        hash_file(digest, path, size)
    return digest.hexdigest()


def hash_file(digest: hashlib._Hash, path: Path, size: int) -> None:
    """Add the content of a file of `size` bytes to a hash. Of a file larger than 64 MiB only 17 blocks of
    64 KiB are read, spread from its start to its end."""
    with open(path, "rb") as file:
        if size <= FULL_HASH_BYTES:
            digest.update(file.read())
            return
        for block in range(17):
            file.seek(block * (size - 2**16) // 16)
            digest.update(file.read(2**16))


def model_folders() -> list[Path]:
    """The folders in which `renderers/`, `rewriters/`, `refiners/` and `judges/` are searched, in order.

    $REPRISE_MODELS; `models/reprise` of the ComfyUI in whose custom_nodes this pack is; `models/reprise` in
    the working directory.
    """
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
    """Hides the libraries' progress bars, notes and warnings (what matters raises an error here)."""
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
    """The folder of the model called `name`, or None."""
    if Path(name).name != name or name == "..":  # a path, not a name
        return None
    for root in model_folders():
        if os.path.isdir(root / kind / name):  # unlike Path.is_dir, also False for a name that is too long
            return root / kind / name
    return embedded_models(kind).get(name)


def installed_models(kind: str) -> list[str]:
    """Names of all models of a kind that are installed or embedded, sorted."""
    folders = (root / kind for root in model_folders())
    found = {p.name for folder in folders if folder.is_dir() for p in folder.iterdir() if p.is_dir()}
    return sorted(found | embedded_models(kind).keys())

"""Downloads a judge's files from Hugging Face, only when asked, and checks what came."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from ...core.errors import CheckpointError, first_line
from ...core.model_files import model_folders
from .files import PublishedFile, advice, find, needs


def fetch(judge: str, say: Callable[[str], None]) -> list[Path]:
    """Downloads what `judge` wants and is not there yet into the first of the models' folders; an
    interrupted download goes on where it was. `say` gets a line before each file. Raises CheckpointError
    where a file is not on Hugging Face, cannot be had, or is not what the hub says it is."""
    lost = [wanted for wanted in needs(judge).files if find(wanted) is None]
    by_hand = [wanted for wanted in lost if not wanted.repo]
    if by_hand:
        raise CheckpointError(f"Hugging Face has no {by_hand[0].name}: {advice(by_hand)}, then ask again")
    fetched = []
    for wanted in lost:
        folder = model_folders()[0] / "judges" / wanted.folder
        say(f"{wanted} from {wanted.page} into {folder}")
        fetched.append(_fetch(wanted, folder))
    return fetched


def _fetch(wanted: PublishedFile, folder: Path) -> Path:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        promised = get_hf_file_metadata(hf_hub_url(wanted.repo, wanted.name, endpoint=endpoint))
        path = Path(
            hf_hub_download(
                wanted.repo, wanted.name, revision=promised.commit_hash, endpoint=endpoint, local_dir=folder
            )
        )
    except Exception as error:  # the hub's, its HTTP library's and the disk's own kinds
        raise CheckpointError(
            f"{wanted.name} cannot be had from {wanted.page}: {first_line(error)}"
        ) from error
    if checksum(path, promised.etag or "") != promised.etag:
        path.unlink()
        raise CheckpointError(f"{wanted.name} arrived damaged and was deleted; ask for it again")
    return path


def checksum(path: Path, like: str) -> str:
    """What the hub calls a file: SHA-256 for a large one (64 digits), git's SHA-1 for a small one."""
    digest = hashlib.sha256() if len(like) == 64 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()

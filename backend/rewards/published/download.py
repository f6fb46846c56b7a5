"""Downloads a judge's files from Hugging Face, only when a user asks for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ...core.errors import CheckpointError, first_line
from ...core.model_files import model_folders
from .files import PublishedFile, advice, find, needs


def fetch(judge: str, report: Callable[[str], None]) -> list[Path]:
    """Download the missing files of `judge` into the first of the models' folders.

    An interrupted download goes on where it was. `report` gets a line before each file. Raises
    CheckpointError where a file is not on Hugging Face, cannot be downloaded, or has not the size that the
    hub says.
    """
    missing = [file for file in needs(judge).files if find(file) is None]
    by_hand = [file for file in missing if not file.repo]
    if by_hand:
        raise CheckpointError(f"Hugging Face has no {by_hand[0].name}: {advice(by_hand)}, then ask again")
    paths = []
    for file in missing:
        folder = model_folders()[0] / "judges" / file.folder
        report(f"{file} from {file.page} into {folder}")
        paths.append(_download(file, folder))
    return paths


def _download(file: PublishedFile, folder: Path) -> Path:
    from huggingface_hub import hf_hub_download

    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        return Path(hf_hub_download(file.repo, file.name, endpoint=endpoint, local_dir=folder))
    except Exception as error:  # the hub's, its HTTP library's and the disk's own kinds
        raise CheckpointError(f"{file.name} cannot be had from {file.page}: {first_line(error)}") from error

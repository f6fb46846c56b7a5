"""The published files that judges need: their names, their sizes, and the folders where they are looked for.

Looking downloads nothing; `download.py` does, when a user asks for it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ...core.errors import CheckpointError, UnknownName
from ...core.model_files import model_folders, user_path


@dataclass(frozen=True)
class PublishedFile:
    """One published file. `bytes` is about its size; `repo` its Hugging Face repository, or `url` its page
    elsewhere. The same file may be in `other_repos` and be called one of `other_names`."""

    folder: str  # under models/reprise/judges
    name: str
    bytes: int
    repo: str = ""
    url: str = ""
    other_repos: tuple[str, ...] = ()
    other_names: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        return self.url or f"https://huggingface.co/{self.repo}"

    def __str__(self) -> str:
        return f"{self.name} ({size(self.bytes)})"


@dataclass(frozen=True)
class JudgeFiles:
    """The files of one judge, the weights first, and its number of parameters."""

    files: tuple[PublishedFile, ...]
    parameters: int


CLIP_L = "openai/clip-vit-large-patch14"
CLIP_L_FILES = (
    PublishedFile(
        "clip-vit-large-patch14",
        "model.safetensors",
        1_710_540_580,
        CLIP_L,
        other_names=("pytorch_model.bin",),
    ),
    PublishedFile("clip-vit-large-patch14", "config.json", 4_519, CLIP_L),
)
DETECTOR = "facebook/mask2former-swin-small-coco-instance"
GENEVAL = JudgeFiles(
    (
        PublishedFile(
            "mask2former-swin-small-coco-instance",
            "model.safetensors",
            275_500_000,
            DETECTOR,
            other_names=("pytorch_model.bin",),
        ),
        PublishedFile("mask2former-swin-small-coco-instance", "config.json", 8_000, DETECTOR),
        PublishedFile("mask2former-swin-small-coco-instance", "preprocessor_config.json", 600, DETECTOR),
        *CLIP_L_FILES,
    ),
    496_356_060,
)
JUDGES: dict[str, JudgeFiles] = {
    "image-reward": JudgeFiles(
        (
            PublishedFile(
                "image-reward",
                "ImageReward.pt",
                1_790_000_000,
                "THUDM/ImageReward",
                other_repos=("zai-org/ImageReward",),
            ),
            PublishedFile(
                "image-reward",
                "vocab.txt",
                231_508,
                "google-bert/bert-base-uncased",
                other_repos=("bert-base-uncased",),
            ),
        ),
        446_206_689,
    ),
    "hps-v2.1": JudgeFiles(
        (PublishedFile("hps-v2.1", "HPS_v2.1_compressed.pt", 1_972_000_000, "xswu/HPSv2"),), 986_109_441
    ),
    "hps-v2": JudgeFiles(
        (PublishedFile("hps-v2", "HPS_v2_compressed.pt", 1_972_000_000, "xswu/HPSv2"),), 986_109_441
    ),
    "pick-score": JudgeFiles(
        (
            PublishedFile(
                "pick-score",
                "model.safetensors",
                3_944_000_000,
                "yuvalkirstain/PickScore_v1",
                other_names=("pytorch_model.bin",),
            ),
            PublishedFile("pick-score", "config.json", 5_000, "yuvalkirstain/PickScore_v1"),
        ),
        986_109_441,
    ),
    "clip-score": JudgeFiles(CLIP_L_FILES, 427_616_513),
    "aesthetic": JudgeFiles(
        (
            PublishedFile(
                "aesthetic",
                "sac+logos+ava1-l14-linearMSE.pth",
                3_714_000,
                url="https://github.com/christophschuhmann/improved-aesthetic-predictor",
            ),
            *CLIP_L_FILES,
        ),
        304_894_177,
    ),
    "geneval": GENEVAL,
    "geneval-strict": GENEVAL,
}


def needs(judge: str) -> JudgeFiles:
    """Raises UnknownName for a judge without files."""
    if judge not in JUDGES:
        raise UnknownName("judge with files of its own", judge, JUDGES)
    return JUDGES[judge]


def find(wanted: PublishedFile, given: Sequence[Path] = ()) -> Path | None:
    """The path of a file, looked for in the folders `given`, then in `judges/` of the models' folders, then
    in Hugging Face's cache."""
    names = (wanted.name, *wanted.other_names)
    folders = [*given, *(root / "judges" / wanted.folder for root in model_folders())]
    for folder in folders:
        for name in names:
            if os.path.isfile(folder / name):
                return folder / name
    if wanted.repo and find_spec("huggingface_hub"):
        from huggingface_hub import try_to_load_from_cache

        for repo in (wanted.repo, *wanted.other_repos):
            for name in names:
                cached = try_to_load_from_cache(repo, name)
                if isinstance(cached, str):  # else: not there, or known not to exist
                    return Path(cached)
    return None


def locate(judge: str, path: str | Path | None = None) -> list[Path]:
    """Paths of a judge's files, the weights first. `path` is the weights' file, or a folder to look in
    first. Raises CheckpointError for missing files: which to download and where to put them."""
    wanted, folder, weights = needs(judge).files, None, None
    if path is not None:
        path = user_path(path)
        if not os.path.exists(path):
            raise CheckpointError(f"there is no {path}; give {judge}'s {wanted[0].name} or its folder")
        weights = path if path.is_file() else None
        folder = path if path.is_dir() else path.parent
    paths = [find(file, _near(folder, file, wanted)) for file in wanted]
    paths[0] = weights or paths[0]
    missing = [file for file, where in zip(wanted, paths, strict=True) if where is None]
    if missing:
        fetch = f"; or run: reprise models --get {judge}" if all(file.repo for file in missing) else ""
        raise CheckpointError(f"{judge} is not installed: {advice(missing)}{fetch}")
    return [where for where in paths if where is not None]


def _near(folder: Path | None, wanted: PublishedFile, all_wanted: Sequence[PublishedFile]) -> list[Path]:
    """Folders to look in for a judge's file when its weights are in `folder`: the same one, or one beside it.
    Of two models that both have a config.json, `folder` holds the first one's."""
    if folder is None:
        return []
    own = next(other for other in all_wanted if other.name == wanted.name) is wanted
    return [*([folder] if own else []), folder.parent / wanted.folder]


def advice(missing: Sequence[PublishedFile]) -> str:
    """One line: which files to download, and where to put them."""
    groups: dict[tuple[str, str], list[PublishedFile]] = {}
    for file in missing:
        groups.setdefault((file.folder, file.page), []).append(file)
    root = model_folders()[0] / "judges"
    return ", and ".join(
        f"put {' and '.join(map(str, files))} from {page} into {root / folder}"
        for (folder, page), files in groups.items()
    )


def size(count: int) -> str:
    """Bytes as people read them."""
    if count < 10**6:
        return f"{count / 10**3:.0f} kB"
    return f"{count / 10**6:.1f} MB" if count < 10**9 else f"{count / 10**9:.2f} GB"

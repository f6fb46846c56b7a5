"""Where a ComfyUI keeps its models: its own folders, and those of its extra_model_paths.yaml.

Source: ComfyUI's folder_paths.py and utils/extra_config.py, whose names and rules these are.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, RepriseError, first_line
from .weight_files import SUFFIXES, Header, read_header

# A kind's own folders under models/, and old names that it goes by in extra_model_paths.yaml.
FOLDERS = {
    "checkpoints": ("checkpoints",),
    "diffusion_models": ("diffusion_models", "unet"),
    "text_encoders": ("text_encoders", "clip"),
    "vae": ("vae",),
    "loras": ("loras",),
}
_PRECISION = re.compile(r"[-_.](fp32|fp16|bf16|fp8|e4m3fn|e5m2|scaled|q\d\w*)")
# ComfyUI-GGUF lists its files as kinds of their own, in the same folders.
_OLD = {"unet": "diffusion_models", "clip": "text_encoders"}


class ComfyuiFolders:
    """The model folders of one ComfyUI, found as it finds them itself."""

    def __init__(self, root: Path):
        """Raises BadInput for a folder that is no ComfyUI, and an extra_model_paths.yaml that is damaged."""
        self.root = root.expanduser()
        if not (self.root / "folder_paths.py").is_file() and not (self.root / "models").is_dir():
            raise BadInput(
                f"--comfyui {root}: no ComfyUI is there (neither folder_paths.py nor models/); give the "
                "folder that holds main.py"
            )
        models = self.root / "models"
        self.folders: dict[str, list[Path]] = {
            kind: [models / name for name in names] for kind, names in FOLDERS.items()
        }
        extra = self.root / "extra_model_paths.yaml"
        if extra.is_file():
            self._add_extra(extra)

    def _add_extra(self, path: Path) -> None:
        import yaml

        try:
            sections: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
            for section in sections.values():
                settings = dict(section or {})
                base = os.path.expandvars(os.path.expanduser(str(settings.pop("base_path", "") or "")))
                # A relative base is meant from the file's folder.
                start = path.parent / base
                first = bool(settings.pop("is_default", False))
                for kind, value in settings.items():
                    kind = _OLD.get(kind, kind)
                    if kind not in self.folders:
                        continue
                    found = [start / line for line in str(value).split("\n") if line.strip()]
                    found = [Path(str(one).strip()) for one in found]
                    known = self.folders[kind]
                    self.folders[kind] = [*found, *known] if first else [*known, *found]
        except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError) as error:
            raise BadInput(f"{path} cannot be read ({first_line(error)}); mend it, or take it away") from None

    def files(self, kind: str) -> list[Path]:
        """Weight files of a kind, folder by folder, sorted by name."""
        found: dict[Path, None] = {}
        for folder in self.folders[kind]:
            for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
                if path.suffix.lower() in SUFFIXES and path.is_file():
                    found.setdefault(path)
        return list(found)

    def named(self, name: str, kinds: Sequence[str]) -> Path | None:
        """The file that ComfyUI lists as `name` under one of these kinds."""
        for kind in kinds:
            for folder in self.folders[kind]:
                if (folder / name).is_file():
                    return folder / name
        return None

    def find(
        self,
        kinds: Sequence[str],
        fits: Callable[[Header], bool],
        hints: Sequence[str],
        option: str,
        what: str,
        needs_hint: bool = False,
    ) -> Path | None:
        """The one file of these kinds that fits; of several, the one whose name has one of the hints, and of
        copies in several precisions the largest. With `needs_hint` none without a hint. Raises BadInput where
        that leaves more than one."""
        fitting = []
        for kind in kinds:
            for path in self.files(kind):
                try:
                    if fits(read_header(path)):
                        fitting.append(path)
                except RepriseError:
                    continue  # a damaged file, or GGUF without its package, is only skipped here
        hinted = [path for path in fitting if any(hint in path.name.lower() for hint in hints)]
        fitting = hinted if needs_hint else hinted or fitting
        if len({_PRECISION.sub("", path.stem.lower()) for path in fitting}) == 1:
            fitting = [max(fitting, key=lambda path: path.stat().st_size)]
        if len(fitting) > 1:
            names = ", ".join(path.name for path in fitting[:6])
            raise BadInput(
                f"{len(fitting)} files of {self.root} could be {what}: {names}; choose by {option}"
            )
        return fitting[0] if fitting else None

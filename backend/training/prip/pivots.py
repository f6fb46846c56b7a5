"""Pivots of pictures, made once and stored, and their statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import BadInput, CheckpointError, RepriseError, first_line
from ...storage.cache import Cache
from ...storage.checksums import check_tensors, save_tensors
from ...storage.images import read_picture
from ..common.checkpoints import write_error

if TYPE_CHECKING:
    from torch import Tensor

    from ...rewriters.prip.vision import ImagePivot


AT_ONCE = 16  # pictures in one forward pass
SHARD = 1024  # in one file
AGAIN = "delete it, and --resume makes it again"
TOO_ALIKE = 0.05  # of their norm: pivots that vary less between pictures say little about them


class Pivots:
    """The pivots of picture files under one vision tower, in safetensors files of up to a thousand.

    An entry's name is made of the tower and of the picture's path, size and time, so that several runs may
    share a folder. Pivots have norm 1 and are stored as float16: 48 KiB for one of BLIP-2. Missing ones are
    made in an order and in batches that are the same when a stopped run goes on.
    """

    def __init__(self, folder: Path, tower: ImagePivot):
        self.folder, self.tower, self.name = folder, tower, fingerprint(tower)
        self.places: dict[str, Path] = {}
        self._files: dict[Path, object] = {}
        for path in sorted(folder.glob("*.safetensors")):
            self._list(path)

    def prepare(self, pictures: Sequence[Path], log: Callable[[str], None]) -> set[Path]:
        """Make the missing ones; returns the pictures that cannot be read.

        Raises CannotWrite.
        """
        import torch

        todo = [path for path in dict.fromkeys(pictures) if self._key(path) not in self.places]
        if todo:
            log(f"making the pivots of {len(todo)} pictures")
        damaged: set[Path] = set()
        for start in range(0, len(todo), SHARD):
            shard: dict[str, Tensor] = {}
            part = todo[start : start + SHARD]
            for begin in range(0, len(part), AT_ONCE):
                seen, images = [], []
                for path in part[begin : begin + AT_ONCE]:
                    try:
                        images.append(self.tower.preprocess(read_picture(path)[None])[0])
                    except BadInput:
                        damaged.add(path)
                    else:
                        seen.append(path)
                if seen:
                    with torch.inference_mode():
                        found = self.tower.embed(torch.stack(images)).half().cpu()
                    shard |= {self._key(path): pivot.clone() for path, pivot in zip(seen, found, strict=True)}
            if not shard:
                continue
            where = self.folder / f"{Cache.key('pivots', sorted(shard))[:16]}.safetensors"
            try:
                save_tensors(where, shard)
            except RepriseError as error:
                raise write_error(where, error) from error
            self._list(where)
        return damaged

    def of(self, pictures: Sequence[Path]) -> Tensor:
        """The pivots of prepared pictures: (B, queries, width), float32, as the tower makes them."""
        import torch
        from safetensors import safe_open

        found = []
        for path in pictures:
            key = self._key(path)
            place = self.places[key]
            try:
                if place not in self._files:
                    self._files[place] = safe_open(place, "pt").__enter__()
                found.append(self._files[place].get_tensor(key).float())  # type: ignore[attr-defined]
            except Exception as error:
                raise _damaged(place, error) from error
        return torch.stack(found)

    def statistics(self, pictures: Sequence[Path]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (queries, width) over pictures, float32, summed in float64."""
        count, total, squares = 0, 0.0, 0.0
        for start in range(0, len(pictures), SHARD):
            part = self.of(pictures[start : start + SHARD]).double()
            count, total, squares = count + len(part), total + part.sum(0), squares + part.square().sum(0)
        mean = total / count
        spread = (squares / count - mean * mean).clamp_min(0).sqrt()  # type: ignore[union-attr]
        return mean.float(), spread.float()  # type: ignore[union-attr]

    def _key(self, path: Path) -> str:
        status = path.stat()
        return Cache.key("pivot", self.name, str(path.resolve()), status.st_size, status.st_mtime_ns)

    def _list(self, path: Path) -> None:
        from safetensors import safe_open

        check_tensors(path, AGAIN)
        try:
            with safe_open(path, "pt") as file:
                self.places |= dict.fromkeys(file.keys(), path)
        except Exception as error:
            raise _damaged(path, error) from error


def variation(mean: Tensor, std: Tensor) -> float:
    """How much pivots vary between pictures, as a share of their norm: 0 where all pivots are the same."""
    spread = std.double().square().mean()
    return float((spread / (spread + mean.double().square().mean()).clamp_min(1e-30)).sqrt())


def fingerprint(tower: ImagePivot) -> str:
    """Changes with the vision tower's weights and the pivot's shape."""
    digest = hashlib.sha256(tower.config.model_dump_json().encode())
    for name, tensor in sorted(tower.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(repr(tensor.flatten()[:64].float().tolist()).encode())
    return digest.hexdigest()[:16]


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({first_line(error)}); {AGAIN}")

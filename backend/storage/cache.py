"""The content-addressed cache: finished pictures and scores on disk, so that nothing is computed twice.

An entry's name is the SHA-256 of everything that determines its content (`Cache.key`). Pictures are 8-bit
PNG; renderers also return 8-bit values, so a cached picture equals a fresh one. Scores are JSON.

A file is written under another name and then renamed. A damaged entry is deleted and counts as missing. An
entry that cannot be read at the moment (no permission, too many open files) only counts as missing. Above its
limit the cache deletes the entries that were not used for the longest time. If the disk is full or not
writable, there is one warning, and the work continues without the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput
from ..core.parsing import parse_json
from .images import check_pixels

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.types import Job

log = logging.getLogger(__name__)

_KEY = re.compile("[0-9A-Za-z_-]+")
_ENTRY = re.compile(r"[0-9a-f]{64}\.(png|json)|\.[0-9a-f]{64}\.(png|json)\.[0-9a-f]{32}\.part")


class Cache:
    """A folder of entries, of about `limit` bytes at most. Several processes may share it.

    With None as the limit no entry is deleted, not even a damaged one: it may be the only copy.
    """

    def __init__(self, folder: str | Path, limit: int | None = 4 * 2**30):
        if limit is not None and limit < 0:
            raise BadInput(f"expected a cache limit of 0 bytes or more, got {limit}; 0 stores nothing")
        self.folder = Path(folder)
        self.limit = limit
        self.writable = True  # False after a failed write
        self._size: int | None = None  # estimated bytes on disk; None: not counted yet
        self._lock = threading.Lock()

    @staticmethod
    def key(*parts: object) -> str:
        """SHA-256 over the parts as JSON: equal parts in the same order give the same name."""
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        # "surrogatepass": a lone surrogate, from an undecodable argument, cannot be encoded otherwise.
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def get_image(self, key: str) -> tuple[Tensor, dict[str, str]] | None:
        """The picture (H, W, 3) in 0..1 and its notes; None if it is missing or damaged."""
        from io import BytesIO

        import numpy as np
        import torch
        from PIL import Image

        path = self._path(key, "png")
        try:
            data = path.read_bytes()
            # Loading alone does not compare the checksums of a PNG's chunks.
            Image.open(BytesIO(data), formats=["PNG"]).verify()
            with Image.open(BytesIO(data), formats=["PNG"]) as picture:
                check_pixels(picture)
                picture.load()
                if picture.mode != "RGB":
                    raise ValueError(f"mode {picture.mode}")
                notes = {name: str(text) for name, text in getattr(picture, "text", {}).items()}
                pixels = np.array(picture)
        except Exception as error:  # Pillow raises many types for damaged files
            self._missed(path, error)
            return None
        self._touch(path)
        return torch.from_numpy(pixels).float() / 255, notes

    def put_image(self, key: str, image: Tensor, notes: Mapping[str, object] | None = None) -> None:
        """Store a picture (H, W, 3) in 0..1, rounded to 8 bits, with short notes of ASCII text."""
        from io import BytesIO

        from PIL import Image
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for name, value in (notes or {}).items():
            info.add_text(name, str(value))
        buffer = BytesIO()
        pixels = image.detach().float().mul(255).round().clamp(0, 255).byte().cpu().numpy()
        Image.fromarray(pixels, "RGB").save(buffer, "PNG", pnginfo=info, compress_level=1)
        self._write(self._path(key, "png"), buffer.getvalue())

    def get_scores(self, key: str) -> dict[str, float] | None:
        """Scores by name, all finite; None if the entry is missing or damaged."""
        path = self._path(key, "json")
        try:
            entry = parse_json(path.read_bytes())
            scores = {str(name): float(value) for name, value in entry["scores"].items()}
            if entry["key"] != key or not all(map(math.isfinite, scores.values())):
                raise ValueError("not this key's scores")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            self._missed(path, error)
            return None
        self._touch(path)
        return scores

    def put_scores(self, key: str, scores: Mapping[str, float]) -> None:
        """Store scores by name; they must be finite."""
        assert all(map(math.isfinite, scores.values())), f"not finite: {dict(scores)}"
        self._write(self._path(key, "json"), json.dumps({"key": key, "scores": dict(scores)}).encode())

    def forget(self, *keys: str) -> None:
        """Delete entries; missing ones are ignored."""
        for path in (self._path(key, kind) for key in keys for kind in ("png", "json")):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                pass  # a read-only cache keeps its entries
        self.recount()

    def recount(self) -> None:
        """Count the bytes again at the next write, because other processes also write here."""
        self._size = None

    def _path(self, key: str, kind: str) -> Path:
        if not _KEY.fullmatch(key):  # it may stand in anybody's file: no path leads out of the folder
            raise BadInput(
                f"{key[:80]!r} cannot be a picture's name in {self.folder}; take the file as it was"
            )
        return self.folder / key[:2] / f"{key}.{kind}"

    def _write(self, path: Path, content: bytes) -> None:
        if not self.writable or (self.limit is not None and len(content) > self.limit):
            return
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                file.write(content)
            grown = len(content) - (path.stat().st_size if path.exists() else 0)
            os.replace(partial, path)
        except OSError as error:
            self.writable = False
            log.warning("cache %s cannot be written (%s); going on without it", self.folder, error)
            try:
                partial.unlink(missing_ok=True)
            except OSError:
                pass  # the folder is gone or read-only, so no file was left there
            return
        if self.limit is None:
            return
        with self._lock:
            if self._size is None:
                self._size = sum(size for _, size, _ in self._entries())
            else:
                self._size += grown
            if self._size > self.limit:
                self._evict(self.limit)

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of all entries. Other processes may delete some meanwhile."""
        found = []
        for path in self.folder.glob("??/*"):
            if not _ENTRY.fullmatch(path.name):  # not made here: never deleted
                continue
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def _evict(self, limit: int) -> None:
        entries = sorted(self._entries())
        self._size = sum(size for _, size, _ in entries)
        # To a little below the limit, so that not every later write has to list the folder.
        while entries and self._size > limit * 0.9:
            _, size, path = entries.pop(0)
            if len(entries) == 0 and self._size <= limit:
                break  # the newest entry may fill the whole cache
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue
            self._size -= size

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:
            pass  # a read-only cache can still be read, but does not record the last use

    def _missed(self, path: Path, error: Exception) -> None:
        """Delete a damaged entry. An error with an errno is the system's: the file may be sound."""
        if isinstance(error, FileNotFoundError):
            return
        refused = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        if self.limit is None or refused:
            log.warning("%s cannot be read (%s); it is left as it is", path, error)
            return
        log.info("cache entry %s is damaged (%s); it is made again", path, error)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # the next write replaces it


def picture_key(fingerprint: str, job: Job) -> str:
    """The cache key of a job's picture. `fingerprint` is the renderer's."""
    start: list[object] = []
    if job.init is not None:
        pixels = job.init.image.detach().float().cpu().contiguous().numpy()
        start = [list(pixels.shape), hashlib.sha256(pixels.tobytes()).hexdigest(), job.init.strength]
    return Cache.key("image", fingerprint, job.prompt, job.seed, *start)


def round_to_8_bits(image: Tensor) -> Tensor:
    """A picture in 0..1 as it is read back from a PNG: clamped and rounded to 8 bits; float32."""
    return image.float().clamp(0, 1).mul(255).round() / 255

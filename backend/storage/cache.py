"""The one content-addressed cache: finished pictures and scores on disk, so that nothing is made twice.

An entry's name is the SHA-256 of all that decides its content (`key`). Pictures are PNG (8 bits, which
is what renderers give, so that a cached picture equals a fresh one), scores JSON. A file is written
whole and then renamed; one that is damaged is deleted and counts as absent, one that cannot be read now (no
permission, too many open files) only counts as absent. When the cache grows beyond its limit the entries
used longest ago go. A disk that is full or not writable costs the cache, never the result: one warning, then
the work goes on uncached.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from ..core.types import Job

log = logging.getLogger(__name__)


class Cache:
    """A folder of entries, at most about `limit` bytes of them. Safe to share between processes.

    Without a limit (None) nothing is ever deleted by itself, damaged entries neither: they may be all that
    there is.
    """

    def __init__(self, folder: str | Path, limit: int | None = 4 * 2**30):
        if limit is not None and limit < 0:
            raise BadInput(f"a cache limit is 0 bytes or more; got {limit}; 0 keeps nothing")
        self.folder = Path(folder)
        self.limit = limit
        self.writable = True  # False after the disk refused
        self._size: int | None = None  # bytes on disk as far as known; None: not counted yet
        self._lock = threading.Lock()

    @staticmethod
    def key(*parts: object) -> str:
        """SHA-256 over the parts' JSON: the same parts, in the same order, give the same name."""
        text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        # A lone surrogate (from an undecodable argument) has no UTF-8, but still deserves a name.
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def get_image(self, key: str) -> tuple[Tensor, dict[str, str]] | None:
        """The picture (H, W, 3) in 0..1 and its notes, or None where there is none or it is damaged."""
        import numpy as np
        import torch
        from PIL import Image

        path = self._path(key, "png")
        try:
            with Image.open(path, formats=["PNG"]) as picture:
                picture.load()
                if picture.mode != "RGB":
                    raise ValueError(f"mode {picture.mode}")
                notes = {name: str(text) for name, text in getattr(picture, "text", {}).items()}
                pixels = np.array(picture)
        except Exception as error:  # Pillow raises many kinds for damaged files
            self._missed(path, error)
            return None
        self._touch(path)
        return torch.from_numpy(pixels).float() / 255, notes

    def put_image(self, key: str, image: Tensor, notes: Mapping[str, object] | None = None) -> None:
        """Keep a picture (H, W, 3) in 0..1, rounded to 8 bits, with short notes of ASCII text."""
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
        """Scores by name, all finite, or None where there are none or the entry is damaged."""
        path = self._path(key, "json")
        try:
            entry = json.loads(path.read_bytes())
            scores = {str(name): float(value) for name, value in entry["scores"].items()}
            if entry["key"] != key or not all(map(math.isfinite, scores.values())):
                raise ValueError("not this key's scores")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._missed(path, error)
            return None
        self._touch(path)
        return scores

    def put_scores(self, key: str, scores: Mapping[str, float]) -> None:
        """Keep scores by name; a score that is not finite is a bug of the caller."""
        assert all(map(math.isfinite, scores.values())), f"not finite: {dict(scores)}"
        self._write(self._path(key, "json"), json.dumps({"key": key, "scores": dict(scores)}).encode())

    def forget(self, *keys: str) -> None:
        """Take entries out, as far as they are there."""
        for path in (self._path(key, kind) for key in keys for kind in ("png", "json")):
            try:
                path.unlink(missing_ok=True)
            except OSError:
                pass  # a read-only cache keeps what it has
        self.recount()

    def recount(self) -> None:
        """Forget how much there is, where other processes write here, too; the next entry counts anew."""
        self._size = None

    def _path(self, key: str, kind: str) -> Path:
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
                pass  # the folder itself is gone or read-only: nothing was left there
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
        """(last use, bytes, path) of all entries; other processes may delete some meanwhile."""
        found = []
        for path in self.folder.glob("??/*"):
            try:
                status = path.stat()
            except OSError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return found

    def _evict(self, limit: int) -> None:
        entries = sorted(self._entries())
        self._size = sum(size for _, size, _ in entries)
        # A little below the limit, so that not every later write has to list the folder.
        while entries and self._size > limit * 0.9:
            _, size, path = entries.pop(0)
            if len(entries) == 0 and self._size <= limit:
                break  # the newest entry alone may fill the cache
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue
            self._size -= size

    def _touch(self, path: Path) -> None:
        try:
            os.utime(path)
        except OSError:
            pass  # a read-only cache still serves; it only forgets what was used last

    def _missed(self, path: Path, error: Exception) -> None:
        """Delete a damaged entry. An error with a number is the system's and says nothing of the file."""
        if isinstance(error, FileNotFoundError):
            return
        refused = isinstance(error, MemoryError) or getattr(error, "errno", None) is not None
        if self.limit is None or refused:
            log.warning("%s cannot be read (%s); it is left as it is", path, error)
            return
        log.info("cache entry %s is damaged (%s); it is made anew", path, error)
        try:
            path.unlink(missing_ok=True)
        except OSError:
            pass  # it will be overwritten, or missed again


def picture_key(fingerprint: str, job: Job) -> str:
    """A drawn picture's name: what decides its pixels. `fingerprint` is the renderer's."""
    start: list[object] = []
    if job.init is not None:
        pixels = job.init.image.detach().float().cpu().contiguous().numpy()
        start = [list(pixels.shape), hashlib.sha256(pixels.tobytes()).hexdigest(), job.init.strength]
    return Cache.key("image", fingerprint, job.prompt, job.seed, *start)


def round_to_8_bits(image: Tensor) -> Tensor:
    """A picture in 0..1, clamped and rounded as it comes out of a PNG; float32."""
    return image.float().clamp(0, 1).mul(255).round() / 255

"""Pictures of a page: inside it, beside it as small copies, or as they lie in a run's folder."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage.files import is_inside, write_whole
from ..storage.images import check_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

QUALITY = 85  # of a shrunk picture, WebP


def picture_path(folder: Path, name: str | None) -> Path | None:
    """The file that a record in `folder` names as `name`, or None where there is none.

    Anyone may have edited a record: a file outside the folder is none.
    """
    if name is None:
        return None
    try:
        path = folder / name
        return path if is_inside(folder, path) and path.is_file() else None
    except (OSError, ValueError):  # no name that a file can have
        return None


def inline_picture(folder: Path, name: str | None, side: int) -> str | None:
    """A picture file as a data URI, shrunk to `side` pixels if it is larger; None if it cannot be read."""
    path = picture_path(folder, name)
    if path is None:
        return None
    from PIL import Image

    try:
        data = path.read_bytes()
        picture = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        check_pixels(picture)
        picture.load()  # raises for a damaged file, of which a browser would show a part
        kind = (picture.format or "").lower()
        if max(picture.size) > side:
            data, kind = _shrunk(picture, side), "webp"
    except Exception:  # damaged; Pillow raises many types. The page says that it is missing.
        return None
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def save_thumbnail(source: Path, path: Path, side: int) -> bool:
    """Make `path`, a WebP of at most `side` pixels, from the picture `source`; False if that cannot be read.

    It gets the time stamp of its source, so that it is made again only for another picture.
    """
    from PIL import Image

    made_from = source.stat().st_mtime_ns
    if is_of(path, made_from):
        return True
    try:
        with Image.open(source, formats=("PNG", "JPEG", "WEBP")) as picture:
            check_pixels(picture)
            picture.load()
            data = _shrunk(picture, side)
    except Exception:  # as above
        return False
    write_whole(path, data)
    os.utime(path, ns=(made_from, made_from))
    return True


def is_of(path: Path, stamp: int) -> bool:
    """Whether the file has the time stamp, in nanoseconds; False where there is none."""
    try:
        return path.stat().st_mtime_ns == stamp
    except OSError:
        return False


def _shrunk(picture: Image, side: int) -> bytes:
    from PIL import Image as images

    picture = picture.convert("RGB")
    picture.thumbnail((side, side), images.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=4)
    return out.getvalue()

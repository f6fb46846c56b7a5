"""The texts that ComfyUI writes into pictures and videos: "prompt" is the graph that drew them (API format),
"workflow" the editor's.

Source: ComfyUI's `_ui.py`, `nodes_video.py` and `video_types.py` (0.33.0); VideoHelperSuite, which puts both
into a video's comment.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ...core.errors import BadInput, first_line
from ...core.parsing import parse_json
from ...storage.images import check_pixels

KEYS = ("prompt", "workflow", "parameters")
VIDEOS = {".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v"}
_EXIF, _USER_COMMENT, _DESCRIPTION = 0x8769, 0x9286, 0x010E


def embedded_texts(path: Path) -> dict[str, str]:
    """The texts of KEYS that a picture or video holds; "parameters" is what Automatic1111 and its kin write.

    Raises BadInput for a file that is neither.
    """
    if path.suffix.lower() in VIDEOS:
        return _of_video(path)
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                return _of_picture(picture)
    except UnidentifiedImageError:
        raise BadInput(
            f"{path} is no workflow: expected JSON, or a picture or video that ComfyUI saved"
        ) from None
    except Exception as error:  # Pillow raises many types for damaged files
        raise BadInput(f"{path} is damaged: {first_line(error)}") from error


def _of_picture(picture: Any) -> dict[str, str]:
    """PNG has texts, an animated one ComfyUI's own chunks at its end; others have "key:text" in Exif."""
    found = {key: text for key, text in picture.info.items() if key in KEYS and isinstance(text, str)}
    exif = picture.getexif()
    for text in exif.values():
        key, colon, rest = text.partition(":") if isinstance(text, str) else ("", "", "")
        if colon and key.lower() in KEYS:
            found.setdefault(key.lower(), rest)
    for text in (exif.get_ifd(_EXIF).get(_USER_COMMENT), exif.get(_DESCRIPTION)):
        comment = _comment(text)
        if "Steps:" in comment:
            found.setdefault("parameters", comment)
    if picture.format == "PNG" and not found:  # one of a single frame is not told from a still picture
        check_pixels(picture)
        picture.seek(getattr(picture, "n_frames", 1) - 1)
        picture.load()
        for kind, data, *_ in picture.private_chunks:
            key, zero, text = data.partition(b"\0")
            if kind == b"comf" and zero and key.decode("latin-1") in KEYS:
                found.setdefault(key.decode("latin-1"), text.decode("utf-8", "replace"))
    return found


def _comment(value: Any) -> str:
    """Exif's UserComment: eight bytes that name the encoding, then the text."""
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else ""
    if value.startswith(b"UNICODE\0"):
        words = value[8:]
        # Writers differ in the order of bytes. ASCII, as settings mostly are, has its zeros first or last.
        return words.decode("utf-16-be" if words[:1] == b"\0" else "utf-16-le", "replace")
    return value.removeprefix(b"ASCII\0\0\0").decode("utf-8", "replace")


def _of_video(path: Path) -> dict[str, str]:
    try:
        import av
        from av.error import FFmpegError
    except ImportError:
        raise BadInput(
            f"{path}: reading a workflow from a video needs PyAV: pip install av; or give the workflow's JSON"
        ) from None
    try:
        with av.open(str(path)) as video:
            tags = {key.lower(): text for key, text in video.metadata.items()}
    except (FFmpegError, OSError, ValueError) as error:
        raise BadInput(f"{path} is no readable video: {first_line(error)}") from error
    try:
        inside = parse_json(tags.get("comment", ""))
    except ValueError:
        inside = None
    if isinstance(inside, dict):
        tags = {**{key: text for key, text in inside.items() if isinstance(text, str)}, **tags}
    return {key: tags[key] for key in KEYS if key in tags}

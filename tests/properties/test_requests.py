"""Requests to the reward server, and pictures wherever they come from."""

import base64
import io
import json

import pytest
from fastapi import HTTPException
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from reprise.backend.core.errors import RepriseError
from reprise.backend.core.types import RewardSpec
from reprise.backend.net.reward_protocol import Limits
from reprise.backend.renderers.comfyui.client import NoPicture
from reprise.backend.renderers.comfyui.renderer import _decoded
from reprise.backend.reports.pictures import inline_picture
from reprise.backend.serving.app import _job, _parse_json
from reprise.backend.serving.batching import BatchingQueue
from reprise.backend.serving.pictures import checked, decoded
from reprise.backend.storage.cache import Cache
from reprise.backend.storage.images import read_picture

from .inputs import as_json, changed, documents, mangled, refuses_clearly


def encoded(kind, **options):
    file = io.BytesIO()
    Image.effect_noise((24, 16), 50).convert("RGB").save(file, kind, **options)
    return file.getvalue()


def with_notes():
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("reprise", json.dumps({"prompt": "a cube"}), zip=True)
    notes.add_text("prompt", "{}", zip=True)
    return encoded("PNG", pnginfo=notes, dpi=(72, 72))


exif = Image.Exif()
exif[0x0112] = 6
PICTURES = [
    with_notes(),
    encoded("JPEG", exif=exif),
    encoded("WEBP"),
    encoded("GIF"),
    encoded("TIFF"),
    encoded("BMP"),
]
pictures = st.sampled_from(PICTURES).flatmap(mangled)


class Bright:
    spec = RewardSpec("bright", 0.0, 1.0)
    fingerprint = None

    def score(self, images, prompts):
        return [0.5] * len(prompts)


@pytest.fixture(scope="module")
def queue():
    made = BatchingQueue([Bright()])
    yield made
    made.close()


REQUEST = {"images": [base64.b64encode(PICTURES[0]).decode()], "prompts": ["a cube"], "rewards": ["bright"]}
LIMITS = Limits(images=4, pixels=10_000, body=100_000)


@given(
    documents(REQUEST)
    | pictures.map(lambda data: as_json({**REQUEST, "images": [base64.b64encode(data).decode()]}))
)
def test_requests_for_scores(queue, body):
    try:
        request = refuses_clearly(_parse_json, body)
        job = request and refuses_clearly(_job, request, queue, LIMITS, "score")
        if job:
            assert sum(picture.pixels for picture in job.pictures) <= LIMITS.pixels
            refuses_clearly(decoded, job.pictures)
    except HTTPException as refused:
        assert refused.status_code == 400 and refused.detail.isprintable()


@given(changed(REQUEST))
def test_requests_to_criticize(queue, values):
    request = refuses_clearly(_parse_json, as_json(values)) if isinstance(values, dict) else None
    if request is not None:
        refuses_clearly(_job, request, queue, LIMITS, "criticize")


@given(pictures)
def test_picture_files(scratch, data):
    (scratch / "picture.png").write_bytes(data)
    image = refuses_clearly(read_picture, scratch / "picture.png")
    assert image is None or (image.shape[-1] == 3 and 0 <= image.min() and image.max() <= 1)
    assert (inline_picture(scratch, "picture.png", 8) or "data:image/").startswith("data:image/")


@given(pictures)
def test_pictures_of_servers(data):
    refuses_clearly(_decoded, data, errors=NoPicture)
    refuses_clearly(lambda: decoded(checked([data], 10_000)))


@given(pictures, documents({"key": "ab" * 32, "scores": {"bright": 0.5}}))
def test_entries_of_a_cache(scratch, picture, scores):
    cache, key = Cache(scratch / "cache"), "ab" * 32
    for data, kind in ((picture, "png"), (scores, "json")):
        path = cache._path(key, kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    image, found = cache.get_image(key), cache.get_scores(key)
    assert image is None or image[0].ndim == 3
    assert found is None or all(isinstance(value, float) for value in found.values())


def bomb(side):
    """A small PNG that unpacks to side x side pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG", optimize=True)
    return file.getvalue()


def test_a_small_file_that_unpacks_to_a_gigantic_picture_is_refused_unread(scratch):
    data = bomb(9_000)  # less than Pillow itself refuses
    assert len(data) < 100_000
    (scratch / "bomb.png").write_bytes(data)
    with pytest.raises(RepriseError, match="pixels"):
        read_picture(scratch / "bomb.png")
    with pytest.raises(NoPicture, match="pixels"):
        _decoded(data)
    with pytest.raises(RepriseError, match="pixels"):
        checked([data], 2**25)
    assert inline_picture(scratch, "bomb.png", 8) is None

"""The files that a real ComfyUI saves hold the graph that drew them."""

import pytest

from reprise.backend.renderers.comfyui.files import read_workflow

pytestmark = pytest.mark.comfyui


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


GRAPH = {
    "1": node("EmptyImage", width=64, height=64, batch_size=2, color=255),
    "2": node("SaveImage", images=["1", 0], filename_prefix="still"),
    "3": node(
        "SaveAnimatedWEBP",
        images=["1", 0],
        filename_prefix="webp",
        fps=6.0,
        lossless=True,
        quality=80,
        method="default",
    ),
    "4": node("SaveAnimatedPNG", images=["1", 0], filename_prefix="apng", fps=6.0, compress_level=4),
    "5": node("SaveWEBM", images=["1", 0], filename_prefix="webm", codec="vp9", fps=8.0, crf=32.0),
    "6": node("CreateVideo", images=["1", 0], fps=8.0),
    "7": node("SaveVideo", video=["6", 0], filename_prefix="mp4", format="mp4", codec="h264"),
}


def test_saved_pictures_and_videos_hold_their_workflow(server):
    pytest.importorskip("av")
    assert server.run(GRAPH)["status"]["status_str"] == "success"
    for prefix, suffix in {
        "still": "png",
        "webp": "webp",
        "apng": "png",
        "webm": "webm",
        "mp4": "mp4",
    }.items():
        files = sorted((server.base / "output").glob(f"{prefix}*.{suffix}"))
        assert files, prefix
        found = read_workflow(files[0])
        assert {name: (one["class_type"], one["inputs"]) for name, one in found.items()} == {
            name: (one["class_type"], one["inputs"]) for name, one in GRAPH.items()
        }, prefix

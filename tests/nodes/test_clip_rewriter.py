"""Rewriter from CLIP over the core's own text generation, in ComfyUI's Python."""

import pytest

pytestmark = pytest.mark.comfyui
_FOUND: dict = {}  # ComfyUI's Python takes long to start: once for all tests


@pytest.fixture
def inside(in_comfyui):
    """What the script found in one of its tasks."""

    def of(task):
        if not _FOUND:
            _FOUND.update(in_comfyui("inside_clip.py", "all"))
        return _FOUND[task]

    return of


def prompts(found):
    return [[rewrite["prompt"] for rewrite in variants] for variants in found]


def test_the_core_generates_what_transformers_generates_from_the_embedded_weights(inside):
    found = inside("embedded")
    assert prompts(found["clip"]) == prompts(found["reprompt"])
    for ours, theirs in zip(*found["mended"], strict=True):
        assert [r["reason"] for r in ours] == [r["reason"] for r in theirs]
    written = [rewrite for variants in found["clip"] for rewrite in variants]
    assert all(r["rewriter"] == "clip" and r["fallback"] is None and r["reason"] for r in written)
    # Each variant has its own seed, independent of the number of variants.
    assert found["again"] == found["sampled"] != found["other"]
    assert found["fewer"][0] == found["sampled"][0][:2]
    # Control tokens and embeddings in the user's prompt have no effect.
    assert found["strange"].startswith("a red (circle:1.3),  EasyNegative   {x}\n\n")
    assert "embedding:" not in found["strange"] and found["kept"][0][0]["prompt"]


def test_a_text_encoder_generates_as_in_generate_text(inside):
    """Z-Image's own tokenizer and Qwen3 at a fraction of the size, with random weights."""
    found = inside("core")
    assert found["ours"] == found["core"]
    for rewrite in found["rewrites"][0]:
        assert rewrite["prompt"] == "a red circle"
        assert "reached the limit of 12 tokens" in rewrite["fallback"]
    assert found["progress"] == [[1, 2], [2, 2]]
    assert found["interrupt"] == {"tokens": 3}


def test_clips_that_cannot_write_are_refused_with_a_remedy(inside):
    found = inside("refusals")
    assert "load one with Load CLIP" in found["none"]
    assert "update it to 0.15" in found["old"]
    for name in ("sd1", "flux"):
        assert found[name].startswith("Unsupported: this CLIP only encodes text"), found[name]

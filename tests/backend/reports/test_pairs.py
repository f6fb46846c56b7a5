"""The page of pairs: one file without requests, everything escaped, and strikes that the store reads."""

import json
import re
import shlex
from html import unescape

import pytest
import torch
from PIL import Image

from reprise.backend.preferences.store import Pair, PairPicture, PairText, RewritePair, Store
from reprise.backend.reports.pairs import closest_pairs, render_pairs, write_pairs

EVIL = "<script>alert('x')</script> & \"a\" cat"


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "store", create=True)
    images = [made.put_image(torch.full((8, 8, 3), i / 8)) for i in range(6)]
    made.add(
        Pair(
            prompt=prompt,
            condition=prompt,
            reward="shapeworld",
            margin=margin,
            source="render",
            run="out/<a>",
            chosen=PairPicture(
                image=images[2 * i],
                drawn_as=f"large {prompt}",
                score=0.5 + margin,
                seed=7,
                scores={"shapeworld": 0.5 + margin, "aesthetic": 5.25},
            ),
            rejected=PairPicture(image=images[2 * i + 1], drawn_as=prompt, score=0.5),
        )
        for i, (prompt, margin) in enumerate([("a dog", 0.4), (EVIL, 0.1), ("a fox", 0.3)])
    )
    return made


def test_the_page_shows_the_closest_pairs_first(store, tmp_path):
    file = tmp_path / "pairs.html"
    store.strike([store.all_pairs()[0].id])
    assert write_pairs(file, store, 10) == 3
    page = file.read_text()
    assert page.count("data:image/png;base64") == 6
    assert EVIL not in page and page.count("<script>") == 1 and "out/&lt;a&gt;" in page
    assert not re.search(r"https?:|url\(|@import", page) and "default-src 'none'" in page
    # The closest first; what is struck is ticked; every pair can be.
    assert [page.index(words) for words in ("alert", "a fox", "a dog")] == sorted(
        page.index(words) for words in ("alert", "a fox", "a dog")
    )
    boxes = dict(re.findall(r'data-pair="(\w+)"( checked)?', page))
    assert {name: bool(struck) for name, struck in boxes.items()} == {
        pair.id: i == 0 for i, pair in enumerate(store.all_pairs())
    }
    for words in ("0.60", "aesthetic 5.25", "seed 7", "<mark>large</mark>", "shapeworld, 0.10 apart"):
        assert words in page, words


def test_pairs_of_rewrites_are_shown_too(store, tmp_path):
    better, worse = (
        PairText(reason=f"Why {words}.", rewrite=words, score=score, pictures=2)
        for words, score in (("a large dog", 0.7), (EVIL, 0.5))
    )
    text = RewritePair(
        prompt="a dog",
        chosen=better,
        rejected=worse,
        reward="shapeworld",
        margin=0.2,
        source="training",
        run="out/b",
    )
    store.add_rewrites([text])
    assert write_pairs(tmp_path / "pairs.html", store, 10) == 4
    page = (tmp_path / "pairs.html").read_text()
    assert "4 of 4 pairs" in page and page.count("data:image/png;base64") == 6 and "picture gone" not in page
    assert EVIL not in page and "Why a large dog." in page and "mean of 2 pictures" in page
    assert page.index("alert") < page.index(f'data-pair="{text.id}"') < page.index("a fox")
    (tmp_path / "strikes.json").write_text(json.dumps({"format": 1, "struck": [text.id]}))
    from reprise.backend.preferences.store import read_strikes

    assert store.strike(*read_strikes(tmp_path / "strikes.json")) == (1, 0) and not store.rewrites()
    write_pairs(tmp_path / "pairs.html", store, 10)
    assert f'data-pair="{text.id}" checked' in (tmp_path / "pairs.html").read_text()


def test_only_the_closest_pairs_are_shown_and_missing_pictures_are_named(store, tmp_path):
    assert [pair.margin for pair in closest_pairs(store.all_pairs(), 2)] == [0.1, 0.3]
    first, *others = closest_pairs(store.all_pairs(), 3)
    wider = first.model_copy(update={"reward": "other", "margin": 0.9})
    assert closest_pairs([wider, *others, first], 3) == [first, *others]  # once, with its smallest margin
    store.image_path(store.all_pairs()[1].chosen.image).unlink()
    write_pairs(tmp_path / "pairs.html", store, 1)
    page = (tmp_path / "pairs.html").read_text()
    assert page.count("picture gone") == 1 and page.count("data-pair=") == 1
    assert "1 of 3 pairs" in page


def test_damaged_pictures_count_as_missing(store, tmp_path, monkeypatch):
    """A damaged PNG chunk, half a file, and a file with more pixels than Pillow allows."""
    pair = store.all_pairs()[0]
    chosen, rejected = (store.image_path(side.image) for side in (pair.chosen, pair.rejected))
    Image.effect_noise((600, 600), 90).convert("RGB").save(chosen)
    whole = chosen.read_bytes()
    second = whole.index(b"IDAT", whole.index(b"IDAT") + 4)
    chosen.write_bytes(whole[:second] + bytes(4) + whole[second + 4 :])
    rejected.write_bytes(rejected.read_bytes()[:50])
    other = store.image_path(store.all_pairs()[1].chosen.image)
    Image.new("RGB", (1000, 1000)).save(other)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400_000)
    assert write_pairs(tmp_path / "pairs.html", store, 3) == 3
    page = (tmp_path / "pairs.html").read_text()
    assert page.count("picture gone") == 3 and page.count("data:image") == 3


def test_the_command_on_the_page_is_quoted(tmp_path):
    page = render_pairs(Store(tmp_path / "my store; $HOME", create=True), [], 0)
    assert f"--store {shlex.quote(str(tmp_path / 'my store; $HOME'))}" in unescape(page)


def test_the_store_reads_what_the_page_saves(store, tmp_path):
    """The script's object, as it is written in the page."""
    write_pairs(tmp_path / "pairs.html", store, 3)
    page = (tmp_path / "pairs.html").read_text()
    assert "JSON.stringify({ format: 1, struck: ids(true), kept: ids(false) }" in page
    first, *rest = [pair.id for pair in store.all_pairs()]
    (tmp_path / "strikes.json").write_text(json.dumps({"format": 1, "struck": [first], "kept": rest}))
    from reprise.backend.preferences.store import read_strikes

    assert store.strike(*read_strikes(tmp_path / "strikes.json")) == (1, 0)

"""The page of pairs in a browser, without a server: tick pairs, save, and the store reads the file."""

import time

import pytest
import torch

from reprise.backend.preferences.store import Pair, PairPicture, Store, read_strikes
from reprise.backend.reports.pairs import write_pairs

from .browser import Browser


@pytest.fixture
def browser():
    made = Browser(1200, 900)
    try:
        yield made
    finally:
        made.close()


def test_pairs_struck_on_the_page_are_struck_in_the_store(browser, tmp_path):
    store = Store(tmp_path / "store", create=True)
    images = [store.put_image(torch.full((8, 8, 3), i / 8)) for i in range(6)]
    sides = [PairPicture(image=image, drawn_as="a large cat", score=1.0) for image in images]
    store.add(
        Pair(
            prompt=f"cat {i}",
            condition="a large cat",
            chosen=sides[2 * i],
            rejected=sides[2 * i + 1],
            reward="r",
            margin=0.1 * (i + 1),
            source="render",
            run="a",
        )
        for i in range(3)
    )
    first, second, third = (pair.id for pair in store.all_pairs())
    store.strike([third])
    write_pairs(tmp_path / "pairs.html", store, 10)
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path / "saved"))
    browser.call("Page.navigate", url=(tmp_path / "pairs.html").as_uri())
    browser.until("document.readyState === 'complete' && document.images.length === 6")
    status = "document.querySelector('output').textContent"
    assert browser.js(status) == "1 of 3 struck"
    for name in (first, third):  # one out, one in again
        browser.js(f"document.querySelector('[data-pair=\"{name}\"]').click()")
    assert browser.js(status) == "1 of 3 struck, not saved yet"
    browser.until("[...document.images].every(i => i.complete && i.naturalWidth === 8)")
    browser.js("document.querySelector('button').click()")
    assert browser.js(status) == "1 of 3 struck"
    file, end = tmp_path / "saved" / "strikes.json", time.monotonic() + 60
    while not file.is_file() and time.monotonic() < end:
        time.sleep(0.1)
    assert store.strike(*read_strikes(file)) == (1, 1)
    assert store.struck_ids() == {first} and [pair.id for pair in store.pairs()] == [second, third]
    assert browser.errors == []

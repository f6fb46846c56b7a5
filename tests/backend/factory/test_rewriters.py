"""Names of rewriters with weights of their own."""

import json

import pytest

from reprise.backend.core.errors import BadInput, UnknownName
from reprise.backend.factory import open_rewriter, parse_rewriter
from reprise.backend.rewriters.prip.rewriter import PripRewriter

from ..rewriters.prip.tiny_prip import save


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A models folder with one refiner, "mine"."""
    root = tmp_path_factory.mktemp("models")
    save(root / "refiners" / "mine")
    return root


@pytest.fixture(autouse=True)
def looked_for(reprise, models, monkeypatch):
    monkeypatch.setenv("REPRISE_MODELS", str(models))


@pytest.mark.parametrize("name", ["prip:mine", "mine", "prip:{}", "{}"])
def test_a_refiner_is_found_by_its_name_and_by_its_folder(models, name):
    made = open_rewriter(name.format(models / "refiners" / "mine"))
    assert isinstance(made, PripRewriter) and made.max_new_tokens == 8


def test_it_rewrites(reprise):
    found = reprise("rewrite", "a red circle.", "--rewriter", "prip:mine", "--variants", "2", "--json")
    assert found.code == 0, found.err
    [one] = json.loads(found.out)
    assert len(one["rewrites"]) == 2
    assert all(r["prompt"].startswith("a red circle") and r["rewriter"] == "prip" for r in one["rewrites"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("prip:mime", "unknown model 'mime'; did you mean 'mine'"),
        ("mime", "did you mean 'mine'"),
        ("promptist", "names no model; expected promptist:FOLDER"),
        ("prip:/nowhere", "no refiner at /nowhere"),
        ("prip:", "names no model; expected prip:FOLDER"),
        ("promptist:/nowhere", "no rewriter at /nowhere"),
    ],
)
def test_bad_names_are_one_line(reprise, name, message):
    found = reprise("rewrite", "a cat", "--rewriter", name)
    assert found.code == 2 and message in found.err, found.err
    assert len(found.err.strip().splitlines()) == 1 and not found.out


def test_the_embedded_refiner_needs_no_name(reprise):
    found = reprise("rewrite", "a photo of two red squares", "--rewriter", "prip", "--json")
    assert found.code == 0, found.err
    (answer,) = json.loads(found.out)
    refined = answer["rewrites"][0]
    assert refined["prompt"].startswith("a photo of two red squares ") and refined["rewriter"] == "prip"


def test_names_are_checked_before_anything_is_loaded():
    for name, kind in (("prip:mime", UnknownName), ("promptist", BadInput)):
        with pytest.raises(kind):
            parse_rewriter(name)


def test_where_none_is_installed(reprise, monkeypatch):
    monkeypatch.delenv("REPRISE_MODELS")
    found = reprise("rewrite", "a cat", "--rewriter", "prip:mine")
    assert found.code == 2 and "none is installed; expected prip:FOLDER" in found.err

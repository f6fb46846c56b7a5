"""`reprise lab pipelines`: which classes there are, what is tried with one, where the table goes."""

import json

import pytest

from reprise.backend.core.errors import BadInput
from reprise.backend.lab.pipelines import catalogue
from reprise.backend.lab.pipelines.table import BEGIN, END, as_markdown, write_into

from ..cli.conftest import reprise  # noqa: F401


def test_a_pipeline_is_tried_and_told(reprise):  # noqa: F811
    done = reprise("lab", "pipelines", "sana", "--json")
    assert done.code == 0, done.err
    trial = json.loads(done.out)["trials"]["sana"]
    assert trial["drawn"] and trial["exact"] and trial["previews"] and trial["lora"]
    assert trial["image_to_image"] is None
    assert reprise("lab", "pipelines", "sanna").code == 2


def test_the_table_goes_between_the_marks_of_a_page(tmp_path):
    trial = {"drawn": True, "exact": True, "previews": True, "image_to_image": None, "lora": False}
    trials = {
        "a": {"pipeline": "APipeline", **trial, "training": False, "why": {}},
        "b": {"pipeline": "BPipeline", "drawn": False, "why": {"drawn": "it broke"}},
    }
    result = {"diffusers": "1.2", "trials": trials, "others": {"CPipeline": "draws a video"}}
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(page, result)
    assert page.read_text() == f"before\n{BEGIN}\n{as_markdown(result)}\n{END}\nafter\n"
    assert "| APipeline | yes | yes | yes | – | no | no |" in page.read_text()
    assert (
        "| it broke | BPipeline |" in page.read_text() and "| draws a video | CPipeline |" in page.read_text()
    )
    page.write_text("no marks")
    with pytest.raises(BadInput, match="no place for the table"):
        write_into(page, result)


def test_the_catalogue_holds_what_draws_from_words():
    found = catalogue.classes()
    assert {"FluxPipeline", "ZImagePipeline", "AmusedPipeline", "HiDreamImagePipeline", "WanPipeline"} <= set(
        found
    )
    assert not {"StableAudioPipeline", "FluxImg2ImgPipeline", "KandinskyPriorPipeline"} & set(found)
    assert catalogue.why_not(found["FluxControlPipeline"]) == "needs a control picture"

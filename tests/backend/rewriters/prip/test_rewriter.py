"""PRIP as a rewriter: whose words stay, what seeds and neighbours change, and pictures as prompts."""

import shutil
from dataclasses import replace

import pytest
import torch

from reprise.backend.core.errors import BadInput, CheckpointError, Interrupted, Unsupported
from reprise.backend.rewriters.prip.rewriter import (
    PripRewriter,
    drop_last_phrase,
    is_refiner,
    join,
    stem_of,
)

from .tiny_prip import TINY, image, save, tiny

PROMPTS = ["a cat", "a photo of a red circle above a blue square on a grey background.", "three stars"]
IMAGES = torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("prip") / "tiny")


@pytest.fixture(scope="module")
def refiner(folder):
    return PripRewriter(folder, device="cpu", batch_size=4)


def texts(refiner, *arguments, **options):
    return [[r.prompt for r in variants] for variants in refiner.rewrite(*arguments, **options)]


@pytest.mark.parametrize(
    ("prompt", "tail", "refined"),
    [
        ("a cat", ", intricate, 4k", "a cat, intricate, 4k"),
        ("a cat.", ", intricate", "a cat, intricate"),
        ("a cat.", "., intricate", "a cat, intricate"),  # as the paper's outputs have it
        ("a cat,", " , , intricate ,", "a cat, intricate"),
        ("a cat", ". It sleeps.", "a cat. It sleeps."),
        ("a cat", "...  it\n sleeps", "a cat. it sleeps"),
        ("a cat", " on a mat", "a cat on a mat"),
        ("a cat!", ", intricate", "a cat! intricate"),
        ("is it a cat?", ". It is", "is it a cat? It is"),
        ("a  cat ;", "; asleep", "a cat; asleep"),
        ("一只猫。", "，水彩画", "一只猫，水彩画"),
        ("a cat", "", "a cat"),
        ("a cat", " .,; !", "a cat"),
        ("a cat", ", 4k", "a cat, 4k"),
        ("...", ", a cat", "..., a cat"),
    ],
)
def test_prompt_and_addition_join_cleanly(prompt, tail, refined):
    assert join(stem_of(prompt), tail) == refined


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (", he is at a rave, on the cover of a", ", he is at a rave"),
        (", sharp. It is a", ", sharp"),
        (", sharp focus, f/1.8 le", ", sharp focus"),
        (", a cat, (glow:1.2) ey", ", a cat"),
        (", a cat at f/1.8", ", a cat at f/1.8"),
        ("，一只猫，水", "，一只猫"),
        (", holding a", ", holding a"),
        (" on a mat in the", " on a mat in the"),
        ("", ""),
    ],
)
def test_a_truncated_text_ends_with_a_whole_phrase(text, kept):
    assert drop_last_phrase(text) == kept


def test_the_users_words_come_first_and_stay_whole(refiner):
    found = refiner.rewrite(PROMPTS, variants=6, seed=3)
    assert [len(variants) for variants in found] == [6, 6, 6]
    for prompt, variants in zip(PROMPTS, found):
        for one in variants:
            assert (one.reason, one.rewriter) == ("", "prip")
            if one.fallback is None:
                rest = one.prompt.removeprefix(prompt.rstrip("."))
                assert rest != one.prompt and rest[0] in " ,.;:!?"
                assert one.prompt == " ".join(one.prompt.split())
    assert sum(one.fallback is None for variants in found for one in variants) > 12


def test_equal_calls_give_equal_refinements(refiner):
    first = refiner.rewrite(PROMPTS, variants=3, seed=5)
    torch.manual_seed(999)  # the global generator has no say
    assert refiner.rewrite(PROMPTS, variants=3, seed=5) == first


def test_refinements_do_not_depend_on_neighbours(refiner):
    together = texts(refiner, PROMPTS, variants=3, seed=5)
    assert [texts(refiner, [p], variants=3, seed=5)[0] for p in PROMPTS] == together
    assert texts(refiner, PROMPTS[::-1], variants=3, seed=5) == together[::-1]
    assert [t[:2] for t in together] == texts(refiner, PROMPTS, variants=2, seed=5)


def test_the_first_variant_is_the_likeliest_and_the_others_have_seeds(refiner):
    [variants] = texts(refiner, ["a cat"], variants=4, seed=5)
    assert len(set(variants)) == 4
    assert texts(refiner, ["a cat"], seed=6)[0][0] == variants[0]
    [others] = texts(refiner, ["a cat"], variants=4, seed=6)
    assert others[0] == variants[0] and not set(others[1:]) & set(variants[1:])
    [mended] = texts(refiner, ["a cat"], variants=4, seed=5, critiques=["there is no cat"])
    assert mended[0] == variants[0] and mended[1:] != variants[1:]


def test_beams_find_likelier_texts_and_do_not_affect_sampling(refiner):
    wide = PripRewriter(refiner.model, max_new_tokens=8, beams=6)
    plain, searched = refiner.rewrite(PROMPTS, 3, 5), wide.rewrite(PROMPTS, 3, 5)
    assert [v[1:] for v in plain] == [v[1:] for v in searched]
    assert texts(wide, PROMPTS[:1], 3, 5) == [[r.prompt for r in searched[0]]]
    model = refiner.model
    begun = [model.decoder_ids(stem_of(prompt)) for prompt in PROMPTS]
    with torch.no_grad():
        pivots = model.encode(model.encoder_ids(PROMPTS))

    def score(rewriter):  # mean log p, which is what beams are compared by
        written = rewriter.generate(list(pivots), begun, [None] * 3)
        with torch.no_grad():
            logps = model.logits(pivots, begun, [one.ids for one in written], continuation=True).log_softmax(
                -1
            )
        return [row[range(len(one.ids)), one.ids].mean().item() for row, one in zip(logps, written)]

    assert all(b >= g - 1e-5 for b, g in zip(score(wide), score(refiner))) and score(wide) != score(refiner)


def test_settings_come_from_the_checkpoint(folder, tmp_path):
    where = save(tmp_path / "trained", max_new_tokens=9, temperature=0.5, beams=2, length_penalty=-1.0)
    made = PripRewriter(where, device="cpu")
    assert (made.max_new_tokens, made.temperature, made.top_p) == (9, 0.5, 1.0)
    assert (made.beams, made.length_penalty) == (2, -1.0)
    given = PripRewriter(where, device="cpu", max_new_tokens=3, length_penalty=0.0)
    assert (given.max_new_tokens, given.length_penalty) == (3, 0.0)
    assert len({made.fingerprint, given.fingerprint, PripRewriter(folder, device="cpu").fingerprint}) == 3
    (where / "reprise.json").write_text('{"beams": "many"}')
    with pytest.raises(CheckpointError, match="reprise.json"):
        PripRewriter(where, device="cpu")


def test_an_empty_addition_falls_back_with_the_cause(refiner, monkeypatch):
    monkeypatch.setattr(refiner, "_added_text", lambda begun, written: " .,")
    [[one]] = refiner.rewrite(["a  cat."])
    assert (one.prompt, one.fallback) == ("a  cat.", "the refiner added nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": ["a", " "]}, "the prompt is empty"),
        ({"prompts": ["<|im_end|>"]}, "the prompt is empty"),
        ({"prompts": ["a"], "variants": 0}, "variant"),
        ({"prompts": ["a"], "seed": -1}, "seed"),
        ({"prompts": ["a cat", "red " * 40]}, "this refiner reads 32; shorten it"),
    ],
)
def test_bad_input(refiner, arguments, message):
    with pytest.raises(BadInput, match=message) as caught:
        refiner.rewrite(**arguments)
    assert "\n" not in str(caught.value)


def test_a_prompt_that_leaves_the_decoder_no_room_is_refused(refiner):
    full = PripRewriter(refiner.model, max_new_tokens=140)
    with pytest.raises(BadInput, match="tokens long, this refiner reads"):
        full.rewrite(["a red circle and a blue square on a plain white ground"])
    with pytest.raises(BadInput, match="lower it"):
        PripRewriter(refiner.model, max_new_tokens=155).describe(IMAGES)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"beams": 0},
        {"max_new_tokens": 0},
        {"batch_size": 0},
    ],
)
def test_bad_settings(refiner, options):
    with pytest.raises(BadInput, match="expected temperature"):
        PripRewriter(refiner.model, **options)


@pytest.mark.parametrize("stopped_at", [1, 4])
def test_interrupt_within_a_token(refiner, stopped_at):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) == stopped_at

    with pytest.raises(Interrupted):
        refiner.rewrite(["a cat"], should_stop=stop)
    assert len(asked) == stopped_at


def test_progress_counts_rows(refiner):
    told = []
    refiner.rewrite(PROMPTS, variants=2, progress=lambda done, rows: told.append((done, rows)))
    assert told == [(4, 6), (6, 6)]


def test_pictures_become_prompts(refiner):
    found = refiner.describe(IMAGES, variants=3, seed=5)
    words = [[one.prompt for one in variants] for variants in found]
    assert len({text for variants in words for text in variants}) > 6
    assert all(any(letter.isalnum() for letter in text) for variants in words for text in variants)
    for i in range(3):
        [alone] = refiner.describe(IMAGES[i : i + 1], variants=2, seed=5)
        assert [one.prompt for one in alone] == words[i][:2]
    assert refiner.describe(IMAGES[:1], seed=9)[0][0].prompt == words[0][0]
    asked = []
    with pytest.raises(Interrupted):
        refiner.describe(IMAGES, should_stop=lambda: asked.append(1) or len(asked) == 5)


def test_refining_loads_no_vision_tower(folder):
    made = PripRewriter(folder, device="cpu")
    made.rewrite(["a cat"])
    assert "vision_tower" not in vars(made)
    made.describe(IMAGES[:1])
    assert "vision_tower" in vars(made)
    with pytest.raises(Unsupported, match="no vision tower"):
        PripRewriter(tiny()).describe(IMAGES)


def test_a_vision_tower_of_another_refiner_is_refused(folder, tmp_path):
    where = shutil.copytree(folder, tmp_path / "mixed")
    other = replace(TINY, image=TINY.image.model_copy(update={"queries": 4}))
    image(other).save_pretrained(where / "image")
    with pytest.raises(CheckpointError, match=r"gives pivots of 4 x 24, this refiner reads 5 x 24"):
        PripRewriter(where, device="cpu").describe(IMAGES)


def test_which_folders_are_refiners(folder, tmp_path):
    assert is_refiner(folder) and not is_refiner(folder / "decoder") and not is_refiner(tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert not is_refiner(tmp_path)

"""Which pairs are learned from, and what is encoded of them, once."""

import json

import pytest
import torch

from reprise.backend.core.errors import BadInput, CheckpointError, Unsupported
from reprise.backend.preferences.store import Pair, PairPicture, Store
from reprise.backend.renderers.diffusers.pipelines import family_of_pipeline
from reprise.backend.training.common.pairs import keep_pairs_of_run, pairs_of_run, usable_pairs
from reprise.backend.training.diffusion_dpo.pairs import Encoded, cropped

from ...renderers.conftest import build


def a_store(folder, count=3, shape=(16, 16, 3)):
    """Pairs of noise, their margins .1, .2, …"""
    store, random = Store(folder, create=True), torch.Generator().manual_seed(0)
    sides = [
        [
            PairPicture(image=store.put_image(torch.rand(shape, generator=random)), drawn_as="x", score=score)
            for score in (0.1 * (i + 1), 0.0)
        ]
        for i in range(count)
    ]
    store.add(
        Pair(
            prompt=f"cat {i}",
            condition=f"a red cat {i}",
            chosen=better,
            rejected=worse,
            margin=0.1 * (i + 1),
            reward="shapeworld",
            source="render",
            run="out/a",
        )
        for i, (better, worse) in enumerate(sides)
    )
    return store


@pytest.fixture
def store(tmp_path):
    return a_store(tmp_path / "store")


def test_ties_and_other_rewards_are_left_out(store):
    said = []
    assert len(usable_pairs(store, None, 0.0, said.append)) == 3
    apart = usable_pairs(store, "shapeworld", 0.15, said.append)
    assert [pair.prompt for pair in apart] == ["cat 1", "cat 2"]
    assert said == []


def test_nothing_to_learn_from(store):
    with pytest.raises(BadInput, match="all 3 pairs .* are ties: none is 0.5 apart, the widest 0.3"):
        usable_pairs(store, None, 0.5, print)
    with pytest.raises(BadInput, match="no pairs of 'pick-score', only of shapeworld"):
        usable_pairs(store, "pick-score", 0.0, print)
    store.strike([pair.id for pair in store.pairs()])
    with pytest.raises(BadInput, match="not struck"):
        usable_pairs(store, None, 0.0, print)


def test_pairs_that_all_contradict_each_other(store):
    first, second, third = store.pairs()
    for one in (first, second):
        turned = {"chosen": one.rejected, "rejected": one.chosen, "reward": "other"}
        store.add([one.model_copy(update=turned)])
    store.strike([third.id])
    with pytest.raises(BadInput, match=r"1 are struck, and 4 say the opposite .* \(other, shapeworld\)"):
        usable_pairs(store, None, 0.0, print)
    assert usable_pairs(store, "shapeworld", 0.0, print) == [first, second]


def test_a_stopped_run_goes_on_with_the_pairs_of_its_reward(store, tmp_path):
    first = store.pairs()[0]
    same = first.model_copy(update={"reward": "other", "margin": 0.7})
    store.add([same])
    keep_pairs_of_run(tmp_path, [same])
    assert pairs_of_run(tmp_path, store.all_pairs()) == [same] != [first]
    (tmp_path / "checkpoints" / "pairs.json").write_text(json.dumps([store.pairs()[1].id]))
    assert pairs_of_run(tmp_path, store.all_pairs()) == [store.pairs()[1]], "a run of an earlier version"
    keep_pairs_of_run(tmp_path, [same])
    with pytest.raises(BadInput, match="1 of the 1 pairs"):
        pairs_of_run(tmp_path, [first])


def test_missing_pictures(tmp_path):
    store, said = a_store(tmp_path / "store", 11), []
    first, second = (store.image_path(pair.chosen.image) for pair in store.pairs()[:2])
    first.unlink()
    assert len(usable_pairs(store, None, 0.0, said.append)) == 10 and "left out 1 of 11" in said[0]
    second.unlink()
    with pytest.raises(BadInput, match="pictures of 2 of 11 pairs are gone"):
        usable_pairs(store, None, 0.0, print)


@pytest.fixture(scope="module")
def pipe():
    torch.set_num_threads(1)
    return build("sd1")


def test_everything_is_encoded_once(store, pipe, monkeypatch):
    family, pairs = family_of_pipeline(pipe), store.pairs()
    encoded = Encoded(store, pipe, family, None, None)
    assert encoded.missing(pairs) == 9, "six pictures and three prompts"
    encoded.prepare(pairs)
    again = Encoded(store, pipe, family, None, None)
    assert again.missing(pairs) == 0
    monkeypatch.setattr(pipe.vae, "encode", None)
    again.prepare(pairs)
    latent, rows = again.latent(pairs[0].chosen.image), again.condition(pairs[0].condition)
    assert latent.shape == (4, 8, 8) and rows["prompt_embeds"].shape == (1, 24, 16)
    torch.testing.assert_close(rows, family.encode(pipe, pairs[0].condition, None))
    # At another size, and for another model, it is another latent.
    assert Encoded(store, pipe, family, 8, None).missing(pairs) == 6
    assert Encoded(store, build("sdxl"), family_of_pipeline(build("sdxl")), None, None).missing(pairs) == 9


def test_sizes_that_cannot_be_encoded(tmp_path, pipe):
    family = family_of_pipeline(pipe)
    store = a_store(tmp_path / "odd", 1, (17, 24, 3))
    with pytest.raises(BadInput, match="24 x 17 .*multiples of 8; set size"):
        Encoded(store, pipe, family, None, None).prepare(store.pairs())
    with pytest.raises(BadInput, match="size=20 is no multiple of 8"):
        Encoded(store, pipe, family, 20, None).prepare(store.pairs())
    fits = Encoded(store, pipe, family, 16, None)
    fits.prepare(store.pairs())
    assert fits.latent(store.pairs()[0].chosen.image).shape == (4, 8, 8)


def test_a_damaged_entry(store, pipe):
    encoded, image = Encoded(store, pipe, family_of_pipeline(pipe), None, None), store.pairs()[0].chosen.image
    encoded.prepare(store.pairs())
    encoded._latent_path(image).write_bytes(b"half")
    with pytest.raises(CheckpointError, match="delete it"):
        encoded.latent(image)
    store.image_path(store.pairs()[1].chosen.image).write_bytes(b"half")
    encoded._latent_path(store.pairs()[1].chosen.image).unlink()
    with pytest.raises(BadInput, match="is damaged"):
        encoded.prepare(store.pairs())


def test_pictures_are_cut_from_the_middle():
    wide = torch.zeros(16, 48, 3)
    wide[:, 16:32] = 1
    assert torch.equal(cropped(wide, 16), torch.ones(16, 16, 3))
    assert cropped(torch.rand(31, 20, 3), 16).shape == (16, 16, 3)
    same = torch.rand(16, 16, 3)
    assert cropped(same, 16) is same


def test_a_family_without_loras_is_refused(store):
    pipe = build("amused")
    with pytest.raises(Unsupported, match="no training is known for AmusedPipeline"):
        Encoded(store, pipe, family_of_pipeline(pipe), None, None)

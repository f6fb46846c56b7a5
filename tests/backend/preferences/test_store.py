import json
import threading

import pytest
import torch

from reprise.backend.core.errors import BadInput
from reprise.backend.preferences.store import Pair, PairPicture, PairText, RewritePair, Store, read_strikes

from .conftest import picture


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store", create=True)


def pair(store, better=1, worse=2, margin=0.5, prompt="a cat", **changes):
    chosen, rejected = (
        PairPicture(image=store.put_image(picture(number)), drawn_as=prompt, score=score, seed=number)
        for number, score in ((better, margin), (worse, 0.0))
    )
    return Pair(
        **{
            "prompt": prompt,
            "condition": prompt,
            "chosen": chosen,
            "rejected": rejected,
            "reward": "shapeworld",
            "margin": margin,
            "source": "render",
            "run": "out/a",
            **changes,
        }
    )


def rewrites(better="a large cat", worse="a cat, low"):
    return RewritePair(
        prompt="a cat",
        chosen=PairText(reason="r", rewrite=better, score=0.9, pictures=2),
        rejected=PairText(reason="r", rewrite=worse, score=0.1),
        reward="shapeworld",
        margin=0.8,
        source="training",
        run="runs/a",
    )


def test_a_picture_is_stored_once_under_a_hash_of_its_pixels(store):
    first = store.put_image(picture(1))
    assert store.put_image(picture(1)) == first != store.put_image(picture(2))
    assert torch.equal(store.image(first), picture(1))
    assert len(list(store.images.folder.glob("??/*.png"))) == 2
    assert store.image("00" * 32) is None


def test_a_damaged_picture_stays_until_it_is_stored_again(store):
    name = store.put_image(picture(1))
    store.image_path(name).write_bytes(b"half")
    assert store.image(name) is None and store.image_path(name).read_bytes() == b"half"
    assert store.put_image(picture(1)) == name and torch.equal(store.image(name), picture(1))


def test_the_same_pair_is_stored_once(store):
    assert store.add([pair(store), pair(store, run="out/b", margin=0.7)]).new == 1
    again = store.add([pair(store), pair(store, worse=3)])
    assert (again.new, again.known) == (1, 1)
    assert [p.rejected.seed for p in Store(store.folder).pairs()] == [2, 3]
    # In another condition, or the other way round, it is another pair.
    assert store.add([pair(store, condition="a dog"), pair(store, 2, 1)]).new == 2


def test_lines_on_record_are_not_rewritten(store):
    """Newer versions write more into a line; an editor may have left the last one without its end."""
    store.add([pair(store)])
    file = store.folder / "pairs.jsonl"
    old = json.dumps({**json.loads(file.read_text()), "rater": "x\u2028"}, ensure_ascii=False).encode()
    file.write_bytes(b"\n" + old)
    assert store.add([pair(store), pair(store, 3, 4)]).new == 1
    assert file.read_bytes().startswith(b"\n" + old + b"\n{") and len(store.all_pairs()) == 2


def test_pairs_are_stored_by_reward_and_returned_once(store):
    """If two rewards agree, both have the pair, and a query of all rewards returns it once. If they disagree,
    only a query of one reward returns it."""
    store.add(
        [
            pair(store, 1, 2),
            pair(store, 3, 4),
            pair(store, 1, 2, 0.2, reward="other"),
            pair(store, 4, 3, reward="other"),
        ]
    )
    assert [(p.chosen.seed, p.reward) for p in store.pairs()] == [(1, "shapeworld")]
    assert [p.chosen.seed for p in store.pairs("shapeworld")] == [1, 3]
    assert [(p.chosen.seed, p.margin) for p in store.pairs("other")] == [(1, 0.2), (4, 0.5)]
    found = store.statistics()["pairs"]
    assert (found["recorded"], found["contradicted"], found["usable"]) == (3, 2, 1)
    assert {name: one["pairs"] for name, one in found["rewards"].items()} == {"shapeworld": 2, "other": 2}
    # What is struck is struck for all of them.
    store.strike([pair(store, 1, 2).id])
    assert [p.chosen.seed for p in store.pairs("other")] == [4] and not store.pairs()


def test_old_names_of_a_judge_are_read_as_its_name(store):
    """Earlier versions stored some VLM judges with #critique at the end of their name."""
    old = pair(store).model_dump() | {"reward": "vlm:x#critique+clip-score"}
    old["chosen"]["scores"] = {"vlm:x#critique": 0.5, "vlm:x#checklist": 0.4}
    store.folder.mkdir(exist_ok=True)
    (store.folder / "pairs.jsonl").write_text(json.dumps(old) + "\n")
    for name in ("vlm:x+clip-score", "vlm:x#critique+clip-score"):
        [found] = store.pairs(name)
        assert found.reward == "vlm:x+clip-score"
        assert found.chosen.scores == {"vlm:x": 0.5, "vlm:x#checklist": 0.4}
    assert store.add([found]).known == 1


def test_processes_that_add_at_once_lose_nothing(store, monkeypatch):
    """Another one adds after this one has read, and before it has written."""
    mine, theirs, waited = pair(store, 1, 2), pair(store, 3, 4), []
    read = Store._read

    def meanwhile(self, *given):
        found = read(self, *given)
        if not waited:
            other = threading.Thread(target=Store(store.folder, create=True).add, args=([theirs],))
            waited.append(other)
            other.start()
            other.join(0.3)  # it waits for the lock, or would be done by now
        return found

    monkeypatch.setattr(Store, "_read", meanwhile)
    store.add([mine])
    waited[0].join()
    assert sorted(p.chosen.seed for p in store.pairs()) == [1, 3]


def test_pairs_that_contradict_each_other_are_left_out(store):
    store.add([pair(store, 1, 2), pair(store, 2, 1), pair(store, 3, 4)])
    assert [p.chosen.seed for p in store.pairs()] == [3]
    found = store.statistics()["pairs"]
    assert (found["recorded"], found["contradicted"], found["usable"]) == (3, 2, 1)
    # Striking one of the two resolves the contradiction.
    store.strike([pair(store, 2, 1).id])
    assert [p.chosen.seed for p in store.pairs()] == [1, 3]


def test_struck_pairs_are_not_learned_from(store, tmp_path):
    kept, bad = pair(store, 1, 2), pair(store, 3, 4)
    store.add([kept, bad])
    store.add_rewrites([rewrites()])
    assert store.strike([bad.id, rewrites().id]) == (2, 0)
    again = Store(store.folder)
    assert again.pairs() == [kept] and again.rewrites() == [] and len(again.all_pairs()) == 2
    assert again.strike([kept.id], [bad.id]) == (1, 1)
    assert again.pairs() == [bad]
    with pytest.raises(BadInput, match="not in"):
        store.strike(["0" * 64])
    file = tmp_path / "s.json"
    file.write_text(json.dumps({"format": 1, "struck": [bad.id], "kept": []}))
    assert read_strikes(file) == ([bad.id], [])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"struck": []}',
        '{"format": 2, "struck": []}',
        '{"format": 1, "struck": [3]}',
        '{"format": 1, "struck": 3}',
    ],
)
def test_a_file_that_holds_no_strikes_is_refused(tmp_path, text):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(BadInput, match="holds no strikes"):
        read_strikes(tmp_path / "s.json")


def test_statistics_count_pairs_margins_and_rewards(store):
    store.add(
        [
            pair(store, 1, 2, 0.5),
            pair(store, 3, 4, 0.1, prompt="a dog", reward="pick-score"),
            pair(store, 5, 6, 0.3, run="out/b"),
        ]
    )
    store.add_rewrites([rewrites()])
    store.image_path(pair(store, 1, 2).chosen.image).unlink()
    found = store.statistics()
    pairs = found["pairs"]
    assert pairs["margin"] == {"least": 0.1, "median": 0.3, "most": 0.5}
    assert pairs["prompts"] == 2 and pairs["runs"] == {"render out/a": 2, "render out/b": 1}
    assert pairs["rewards"]["shapeworld"] == {"pairs": 2, "chosen": 0.4, "rejected": 0.0}
    assert found["rewrites"]["usable"] == 1 and found["images"] == {"named": 6, "gone": 1}
    json.dumps(found)


def test_rewrites_are_stored_once(store):
    assert store.add_rewrites([rewrites(), rewrites()]).new == 1
    assert store.add_rewrites([rewrites("a cat, low", "a large cat")]).new == 1
    assert len(store.all_rewrites()) == 2 and store.rewrites() == []


def test_prompts_of_any_language_are_read_back(store):
    odd = pair(store, prompt='一只\u2028猫 "<b>"\n')
    store.add([odd])
    assert Store(store.folder).pairs() == [odd]


def test_a_folder_that_is_no_store_is_refused(tmp_path, store):
    with pytest.raises(BadInput, match="preferences mine"):
        Store(tmp_path / "none")
    store.add([pair(store)])
    with (store.folder / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "half')
    with pytest.raises(ValueError, match="margin\n.*finite"):
        Pair.model_validate({**pair(store).model_dump(), "margin": float("inf")})
    with pytest.raises(BadInput, match="line 2"):
        store.pairs()


def test_a_store_file_that_is_not_text_is_refused(store):
    store.add([pair(store)])
    (store.folder / "pairs.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(BadInput, match="pairs.jsonl are not UTF-8"):
        store.pairs()


def test_a_picture_that_cannot_be_written_is_an_error(store):
    store.images.folder.parent.mkdir(parents=True, exist_ok=True)
    store.images.folder.write_text("a file where a folder should be")
    with pytest.raises(Exception, match="cannot be written"):
        store.put_image(picture(1))

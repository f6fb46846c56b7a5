import pytest

from reprise.backend.core.errors import RewardFailed
from reprise.backend.core.types import Rewrite
from reprise.backend.rewards.text import Length, Structure, count_words


def rewrite(count, reason="because", fallback=None):
    return Rewrite(reason, " ".join(["word"] * count), "test", fallback)


def test_structure_needs_prompt_and_reason():
    asked = [rewrite(20), rewrite(20, reason=" "), rewrite(20, fallback="cut off"), rewrite(0)]
    assert Structure().score_text(asked, ["p"] * 4) == [1, -1, -1, -1]
    assert Structure(reasoning=False).score_text(asked, ["p"] * 4) == [1, 1, -1, -1]


@pytest.mark.parametrize(("count", "score"), [(0, -1), (1, 0), (14, 0), (15, 1), (77, 1), (78, 0), (5000, 0)])
def test_length_counts_words_inclusively(count, score):
    assert Length().score_text([rewrite(count)], ["p"]) == [score]


def test_missing_is_below_wrong_is_below_right():
    """Reference defect 5: there a missing answer beat a long one."""
    missing, short, long, right = Length().score_text(
        [rewrite(20, fallback="unparsable"), rewrite(3), rewrite(200), rewrite(30)], ["p"] * 4
    )
    assert missing < short == long < right


def test_characters_count_as_words_in_scripts_without_spaces():
    assert count_words("一只红色的猫") == 6
    assert count_words("a red, round thing") == 4
    assert count_words("") == 0


def test_specs_name_what_the_rewards_read():
    for reward in (Structure(), Length()):
        assert reward.spec.reads == "rewrites"
        assert (reward.spec.low, reward.spec.high, reward.spec.higher_is_better) == (-1, 1, True)


def test_one_prompt_per_rewrite_is_required():
    with pytest.raises(RewardFailed, match="'length'.*2 for 1"):
        Length().score_text([rewrite(20)], ["p", "q"])
    with pytest.raises(RewardFailed, match="'structure'"):
        Structure().score_text([rewrite(20)], [])


def test_impossible_limits_are_refused():
    with pytest.raises(ValueError, match="low=9, high=3"):
        Length(9, 3)

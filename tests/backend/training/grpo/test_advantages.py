import pytest

from reprise.backend.training.grpo.advantages import Member, advantages, group_sums, has_signal


def members(*rows, **options):
    return [Member(row, **options) for row in rows]


def test_each_reward_is_normalised_then_weighted():
    """By hand: (1, 2, 3) -> (-1, 0, 1); (0, 0, 3) has mean 1 and std 3 ** .5 -> (-1, -1, 2) / 3 ** .5."""
    group = members({"a": 1, "b": 0}, {"a": 2, "b": 0}, {"a": 3, "b": 3})
    root = 3**0.5
    sums = group_sums(group, {"a": 2.0, "b": 0.5}, floor=0.0)
    assert sums == pytest.approx([-2 - 0.5 / root, -0.5 / root, 2 + 1 / root])


def test_a_reward_of_another_scale_weighs_the_same():
    small, large = members({"a": 0.1}, {"a": 0.2}, {"a": 0.6}), members({"a": 100}, {"a": 200}, {"a": 600})
    assert group_sums(small, {"a": 1}, 0.0) == pytest.approx(group_sums(large, {"a": 1}, 0.0))


def test_near_ties_give_no_signal():
    """The std of (.50, .51, .52) is .01."""
    group = members({"a": 0.50, "b": 0.0}, {"a": 0.51, "b": 1.0}, {"a": 0.52, "b": 2.0})
    assert group_sums(group, {"a": 1.0, "b": 1.0}, floor=0.02) == pytest.approx([-1, 0, 1])
    tied = group_sums(group, {"a": 1.0}, floor=0.02)
    assert tied == [0, 0, 0] and not has_signal(tied)
    assert has_signal(group_sums(group, {"a": 1.0}, floor=0.005))


def test_an_undrawn_answer_counts_as_the_groups_worst_picture():
    """The picture's scores are (.2, .8, .2 in place of none): mean .4, std .12 ** .5."""
    group = [
        Member({"picture": 0.2, "structure": 1.0}),
        Member({"picture": 0.8, "structure": 1.0}),
        Member({"structure": 0.0}, drawn=False),
    ]
    sums = group_sums(group, {"picture": 1.0}, 0.0)
    assert sums == pytest.approx([-0.2 / 0.12**0.5, 0.4 / 0.12**0.5, -0.2 / 0.12**0.5])
    both = group_sums(group, {"picture": 1.0, "structure": 0.1}, 0.0)
    assert both[2] < both[0] < both[1]  # missing < worst picture < best


def test_a_group_of_unreadable_answers_has_no_signal():
    group = members({"structure": 0.0}, {"structure": 0.0}, drawn=False)
    assert not has_signal(group_sums(group, {"picture": 1.0, "structure": 1.0}, 0.0))


def test_originals_count_in_the_statistics_and_have_no_structure():
    """Pictures (1, 1, 0, 0), the last two as typed: mean .5, std 1 / 3 ** .5."""
    written = members({"picture": 1.0, "structure": 1.0}, {"picture": 1.0, "structure": 0.0})
    typed = members({"picture": 0.0}, {"picture": 0.0}, original=True)
    z = 0.5 * 3**0.5
    assert group_sums(written + typed, {"picture": 1.0}, 0.0) == pytest.approx([z, z, -z, -z])
    sums = group_sums(written + typed, {"picture": 1.0, "structure": 1.0}, 0.0)
    assert sums == pytest.approx([z + 0.5**0.5, z - 0.5**0.5, -z, -z])


def test_the_batch_scales_and_clips():
    """Over (-1, 1, -3, 3): squares 20, std (20 / 3) ** .5; a group without signal does not count."""
    std = (20 / 3) ** 0.5
    found = advantages([[-1.0, 1.0], [0.0, 0.0], [-3.0, 3.0]], clip=5)
    assert [v for g in found for v in g] == pytest.approx([-1 / std, 1 / std, 0, 0, -3 / std, 3 / std])
    assert advantages([[-1.0, 1.0], [-3.0, 3.0]], clip=1.0)[1] == [-1.0, 1.0]
    assert advantages([[0.0, 0.0]], clip=5) == [[0.0, 0.0]]


def test_sums_of_a_group_add_up_to_zero():
    group = [Member({"a": 0.1, "s": 1}), Member({"a": 0.7, "s": 1}), Member({"s": 0}, drawn=False)]
    assert sum(group_sums(group, {"a": 1.0, "s": 0.3}, 0.0)) == pytest.approx(0)

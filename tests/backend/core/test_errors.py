"""The error tree: exit codes, and the closest match for a mistyped name."""

import inspect

from reprise.backend.core import errors


def test_each_error_has_its_exit_code():
    codes = {
        name: cls.exit_code
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, errors.RepriseError)
    }
    assert codes == {
        "RepriseError": 1,
        "BadInput": 2,
        "UnknownName": 2,
        "CheckpointError": 2,
        "Unsupported": 2,
        "RewardFailed": 1,
        "RenderFailed": 1,
        "EndpointError": 1,
        "AnswerRefused": 1,
        "TrainingFailed": 1,
        "DiskFull": 1,
        "Interrupted": 1,
    }


def test_an_unknown_name_gives_the_closest_match_and_a_few_names():
    near = errors.UnknownName("reward", "shapewrld", ["shapeworld", "length"])
    assert str(near) == (
        "unknown reward 'shapewrld'; did you mean 'shapeworld'? expected one of length, shapeworld"
    )
    far = errors.UnknownName("reward", "zzz", ["b", "a"])
    assert str(far) == "unknown reward 'zzz'; expected one of a, b" and far.near is None
    many = errors.UnknownName("setting", "stepz", ["steps", *(f"other{i}" for i in range(20))])
    assert str(many) == "unknown setting 'stepz'; did you mean 'steps'?"


def test_a_failed_reward_is_reported_by_name():
    error = errors.RewardFailed("clip", ValueError("no picture"))
    assert "clip" in str(error) and "no picture" in str(error) and isinstance(error.cause, ValueError)

"""The desk by itself: what becomes of those who wait when it closes."""

import threading

import pytest
from PIL import Image

from reprise.backend.serving.desk import Desk, Job, TurnedAway

from ...reward_server import Gate


def job():
    return Job([Image.new("L", (8, 4), 255)], ["a"], ["gate"])


def one_in_work_and_one_in_line():
    gate = Gate()
    desk = Desk([gate])
    in_work = desk.submit(job())
    assert gate.entered.wait(10)
    return gate, desk, in_work, desk.submit(job())


def test_who_is_in_work_gets_the_answer_and_who_waits_is_turned_away():
    gate, desk, in_work, in_line = one_in_work_and_one_in_line()
    closing = threading.Thread(target=desk.close, args=(10,))
    closing.start()
    with pytest.raises(TurnedAway, match="is stopping"):
        in_line.result(10)
    with pytest.raises(TurnedAway, match="is stopping"):
        desk.submit(job())
    assert not in_work.done()
    gate.open.set()
    assert in_work.result(10).found == {"gate": [1.0]}
    closing.join(10)
    assert desk.answered == 1 and gate.batches == [(1, 4, 8, 3)]


def test_patience_ends():
    gate, desk, in_work, _ = one_in_work_and_one_in_line()
    desk.close(0.01)
    with pytest.raises(TurnedAway, match="is stopping"):
        in_work.result(0)
    gate.open.set()

"""The queue by itself: what becomes of those who wait when it closes."""

import threading

import pytest
from PIL import Image

from reprise.backend.serving.batching import BatchingQueue, QueuedRequest, QueueFull

from ...reward_server import Gate


def job():
    return QueuedRequest([Image.new("L", (8, 4), 255)], ["a"], ["gate"])


def one_in_work_and_one_in_line():
    gate = Gate()
    queue = BatchingQueue([gate])
    in_work = queue.submit(job())
    assert gate.entered.wait(10)
    return gate, queue, in_work, queue.submit(job())


def test_who_is_in_work_gets_the_answer_and_who_waits_is_turned_away():
    gate, queue, in_work, in_line = one_in_work_and_one_in_line()
    closing = threading.Thread(target=queue.close, args=(10,))
    closing.start()
    with pytest.raises(QueueFull, match="is stopping"):
        in_line.result(10)
    with pytest.raises(QueueFull, match="is stopping"):
        queue.submit(job())
    assert not in_work.done()
    gate.open.set()
    assert in_work.result(10).values == {"gate": [1.0]}
    closing.join(10)
    assert queue.answered == 1 and gate.batches == [(1, 4, 8, 3)]


def test_patience_ends():
    gate, queue, in_work, _ = one_in_work_and_one_in_line()
    queue.close(0.01)
    with pytest.raises(QueueFull, match="is stopping"):
        in_work.result(0)
    gate.open.set()

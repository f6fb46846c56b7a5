"""The queue alone: the requests that it holds when it closes."""

import io
import threading

import pytest
import torch

from reprise.backend.serving.batching import BatchingQueue, QueuedRequest, QueueFull
from reprise.backend.serving.pictures import checked
from reprise.backend.storage.images import to_pil

from ...reward_server import Gate

WHITE = to_pil(torch.ones(1, 4, 8, 3))[0]


def job(prompt="a", **options):
    file = io.BytesIO()
    WHITE.save(file, "PNG")
    return QueuedRequest(checked([file.getvalue()], 100), [prompt], ["gate"], **options)


def one_in_work_and_one_waiting():
    gate = Gate()
    queue = BatchingQueue([gate])
    in_work = queue.submit(job())
    assert gate.entered.wait(10)
    return gate, queue, in_work, queue.submit(job())


def test_on_close_requests_in_work_are_answered_and_waiting_ones_refused():
    gate, queue, in_work, waiting = one_in_work_and_one_waiting()
    closing = threading.Thread(target=queue.close, args=(10,))
    closing.start()
    with pytest.raises(QueueFull, match="is stopping"):
        waiting.result(10)
    with pytest.raises(QueueFull, match="is stopping"):
        queue.submit(job())
    assert not in_work.done()
    gate.open.set()
    assert in_work.result(10).values == {"gate": [1.0]}
    closing.join(10)
    assert queue.answered == 1 and gate.batches == [(1, 4, 8, 3)]


def test_close_does_not_wait_longer_than_its_patience():
    gate, queue, in_work, _ = one_in_work_and_one_waiting()
    queue.close(0.01)
    with pytest.raises(QueueFull, match="is stopping"):
        in_work.result(0)
    gate.open.set()

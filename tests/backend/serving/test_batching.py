"""The queue alone: the requests that it holds when it closes."""

import io
import threading

import pytest
import torch

from reprise.backend.serving import batching
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


def test_a_judge_sees_no_more_pixels_at_once_than_it_can_hold(monkeypatch):
    monkeypatch.setattr(batching, "CALL_PIXELS", 100)
    shapes = []

    def call(images, prompts):
        shapes.append(tuple(images.shape[:3]))
        return [f"{prompt} {image[0, 0, 0]:g}" for image, prompt in zip(images, prompts, strict=True)]

    sizes = [(4, 8), (10, 20), (4, 8), (8, 4), (4, 8), (4, 8), (10, 20)]
    images = [torch.full((*size, 3), float(i)) for i, size in enumerate(sizes)]
    found = batching.by_size(images, list("abcdefg"), call)
    assert found == ["a 0", "b 1", "c 2", "d 3", "e 4", "f 5", "g 6"]
    assert shapes == [(3, 4, 8), (1, 4, 8), (1, 10, 20), (1, 10, 20), (1, 8, 4)]


def test_large_pictures_share_no_batch(monkeypatch):
    """Who comes next waits for one of them, not for all."""
    monkeypatch.setattr(batching, "CALL_PIXELS", 70)  # two of 4 x 8
    gate, queue, in_work, waiting = one_in_work_and_one_waiting()
    more = [queue.submit(job()) for _ in range(4)]
    gate.open.set()
    for future in (in_work, waiting, *more):
        assert future.result(10).values == {"gate": [1.0]}
    assert [shape[0] for shape in gate.batches] == [1, 2, 2, 1]
    queue.close()

import torch

from reprise.backend.training.common.offload import (
    NAMES,
    StageTimer,
    judge_modules,
    modules_mover,
    renderer_modules,
)


def test_one_role_at_a_time_each_moved_once():
    moved = []

    def mover(name):
        return lambda device: moved.append((name, device))

    rewriter, renderer = mover("rewriter"), mover("renderer")
    timer = StageTimer("cuda", {"write": rewriter, "update": rewriter, "render": renderer})
    with timer("render"):
        assert moved == [("rewriter", "cpu"), ("renderer", "cuda")]
    moved.clear()
    with timer("update"), timer("score"):  # nobody's phase
        assert moved == [("renderer", "cpu"), ("rewriter", "cuda")]


def test_seconds_are_counted_also_of_what_fails():
    timer = StageTimer()
    assert timer.seconds == dict.fromkeys(NAMES, 0.0)
    try:
        with timer("score"):
            raise ValueError
    except ValueError:
        pass
    assert timer.seconds["score"] > 0 and timer.seconds["write"] == 0


def test_an_optimizers_state_moves_with_its_weights():
    """The meta device stands in for a GPU."""
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    modules_mover(lambda: [layer], lambda: optimizer)("meta")
    assert layer.weight.device.type == "meta"
    for state in optimizer.state.values():
        assert state["exp_avg"].device.type == "meta" and state["step"].device.type == "cpu"


def test_what_can_be_moved():
    class Judge:
        model = torch.nn.Linear(1, 1)

    class Renderer:
        def __init__(self, hooks):
            self.pipeline = type("Pipeline", (), {"_all_hooks": hooks})()

    assert judge_modules([Judge(), object()]) == [Judge.model]
    mine = Renderer([])
    assert renderer_modules(mine) == [mine.pipeline]
    assert renderer_modules(Renderer(["moves itself"])) == renderer_modules(object()) == []

import torch

from reprise.backend.training.common.offload import (
    STAGES,
    GpuOffload,
    OffloadRole,
    StageTimer,
    judge_modules,
    renderer_modules,
)


class Recorded(OffloadRole):
    """Notes where it was moved to."""

    def __init__(self, name, moves):
        super().__init__(list)
        self.name, self.moves = name, moves

    def move(self, device):
        self.moves.append((self.name, device))


def test_one_role_at_a_time_each_moved_once():
    moves = []
    rewriter, renderer = Recorded("rewriter", moves), Recorded("renderer", moves)
    timer = StageTimer(GpuOffload("cuda", {"write": rewriter, "update": rewriter, "render": renderer}))
    with timer("render"):
        assert moves == [("rewriter", "cpu"), ("renderer", "cuda")]
    moves.clear()
    with timer("update"), timer("score"):  # a stage without a role
        assert moves == [("renderer", "cpu"), ("rewriter", "cuda")]


def test_seconds_of_failed_work_are_counted():
    timer = StageTimer()
    assert timer.seconds == dict.fromkeys(STAGES, 0.0)
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
    OffloadRole(lambda: [layer], lambda: optimizer).move("meta")
    assert layer.weight.device.type == "meta"
    for state in optimizer.state.values():
        assert state["exp_avg"].device.type == "meta" and state["step"].device.type == "cpu"


def test_renderers_and_judges_with_a_model_can_be_moved():
    class Role:
        def __init__(self, model):
            self.model = model

    network = torch.nn.Linear(1, 1)
    assert judge_modules([Role(network), Role(None)]) == [network]
    assert renderer_modules(Role(network)) == [network] and renderer_modules(Role(None)) == []

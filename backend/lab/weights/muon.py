"""Muon for matrices and convolution kernels: momentum, orthogonalised by a Newton-Schulz iteration.

Source: Jordan et al. 2024 (github.com/KellerJordan/Muon); update scale of Liu et al. 2025 (arXiv
2502.16982, eq. 4), 0.2 sqrt(max(rows, columns)), so that AdamW's learning rates fit.
Departs from torch.optim.Muon: it computes in float32, batched over matrices of equal shape. torch's always
uses bfloat16, which is three times slower on CPUs that only emulate it.
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Matrices (N, rows, columns), rows <= columns -> approximately the nearest semi-orthogonal ones."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


class Muon(torch.optim.Optimizer):
    """For the matrices inside a network's blocks; use AdamW for the other parameters. A convolution's kernel
    is treated as the matrix (out, in x height x width)."""

    def __init__(self, params, lr: float, momentum: float = 0.95, weight_decay: float = 0.01):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(momentum, group["momentum"]).flatten(1)  # Nesterov
                by_shape[tuple(update.shape)].append((p, update))
            for shape, pairs in by_shape.items():
                tall = shape[0] > shape[1]
                stacked = torch.stack([u.mT if tall else u for _, u in pairs])
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for (p, _), u in zip(pairs, orthogonalise(stacked), strict=True):
                    u = (u.mT if tall else u).reshape(p.shape)
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(u, alpha=scale)


def muon_and_adamw(
    model: nn.Module, *inside: str, rate: float, decay: float = 0.01, kernels: bool = False
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices (and convolution `kernels`) with one of `inside` in their names, AdamW with the
    weight `decay` for everything else."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        chosen = any(part in name for part in inside) and (p.ndim == 2 or kernels and p.ndim > 2)
        (matrices if chosen else others).append(p)
    adam = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=decay)
    return [Muon(matrices, lr=rate), adam]

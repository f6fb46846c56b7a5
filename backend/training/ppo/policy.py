"""The policy of PPO: log-probabilities of what was written, values of tokens, the first pivots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ...core.errors import CheckpointError, RepriseError, first_line
from ...storage.checksums import check_tensors, save_tensors
from ..common.checkpoints import write_error

if TYPE_CHECKING:
    from ...rewriters.prip.model import Prip
    from ...rewriters.prip.rewriter import PripRewriter
    from .rollouts import Row

CHUNK = 4096  # prompts whose pivots lie in one file
AGAIN = "delete it, and --resume makes it again"


class ValueHead(nn.Module):
    """Predicts the reward that is to come, from the decoder's states. At first it predicts 0."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.inner = nn.Linear(hidden, width)
        self.outer = nn.Linear(width, 1)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, states: Tensor) -> Tensor:
        """States (N, hidden) -> values (N,). No gradient flows back into the states."""
        seen = self.norm(states.detach().float())
        return self.outer(nn.functional.gelu(self.inner(seen)))[:, 0]


@dataclass
class Tokens:
    """The tokens of some rows, one after the other: (N,) each, `states` (N, hidden)."""

    logps: Tensor
    entropy: Tensor
    states: Tensor
    lengths: list[int]  # of the rows, N in all


def tokens_of(model: Prip, rows: Sequence[Row], pivots: Tensor, temperature: float) -> Tokens:
    """The log-probabilities of what was written, under the policy of `pivots` (B, queries, width) and the
    distribution that it was drawn from. Gradients go to the pivots."""
    written = [sample.written.ids for _, sample in rows]
    lengths = [len(ids) for ids in written]
    logits, states = model.logits_and_states(
        pivots, [group.prefix for group, _ in rows], written, continuation=True
    )
    most, device = logits.shape[1], logits.device
    mask = torch.arange(most, device=device) < torch.tensor(lengths, device=device)[:, None]
    ids = torch.tensor([token for row in written for token in row], device=device)
    logps = (logits[mask] / temperature).log_softmax(-1)  # (N, V)
    with torch.no_grad():
        entropy = torch.special.entr(logps.exp()).sum(-1)
    return Tokens(logps.gather(1, ids[:, None])[:, 0], entropy, states[mask], lengths)


def pivots_of(model: Prip, rows: Sequence[Row]) -> Tensor:
    """The pivot of each row's prompt, (B, queries, width), in one pass over the prompts that differ."""
    places: dict[tuple[int, ...], int] = {}
    chosen = [places.setdefault(tuple(group.ids), len(places)) for group, _ in rows]
    return model.encode([list(ids) for ids in places])[chosen]


class WarmPivots:
    """The pivots that the encoder made of prompts at first, to which the policy is held.

    They are stored in files, in the precision that the decoder reads, for when a stopped run goes on.
    """

    def __init__(self, folder: Path, prompts: Sequence[str], rewriter: PripRewriter):
        """Makes those that are not there; `rewriter` must have its first weights. Raises CannotWrite, and
        CheckpointError for a damaged file."""
        self.folder = folder
        self.places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
        order = list(self.places)
        for start in range(0, len(order), CHUNK):
            path = self._file(start)
            if not path.is_file():
                self._make(path, order[start : start + CHUNK], rewriter)
            check_tensors(path, AGAIN)

    def of(self, prompts: Sequence[str], device: torch.device) -> Tensor:
        """(B, queries, width). Raises CheckpointError for a damaged file."""
        from safetensors import SafetensorError, safe_open

        found: dict[str, Tensor] = {}
        path = self.folder
        try:
            for prompt in dict.fromkeys(prompts):
                path, row = self._file(self.places[prompt]), self.places[prompt] % CHUNK
                with safe_open(path, "pt") as file:
                    found[prompt] = file.get_slice("pivots")[row : row + 1]
        except (OSError, SafetensorError, IndexError) as error:
            raise CheckpointError(f"{path} is damaged ({first_line(error)}); {AGAIN}") from error
        return torch.cat([found[prompt] for prompt in prompts]).to(device)

    def _file(self, place: int) -> Path:
        return self.folder / f"{place // CHUNK:05}.safetensors"

    def _make(self, path: Path, prompts: Sequence[str], rewriter: PripRewriter) -> None:
        ids, _ = rewriter.encode_prompts(prompts)
        pivots = rewriter.predict_pivots(ids)
        stacked = torch.stack([pivots[prompt] for prompt in prompts]).to(
            rewriter.model.projector.weight.dtype
        )
        try:
            save_tensors(path, {"pivots": stacked.contiguous()})
        except RepriseError as error:
            raise write_error(path, error) from error

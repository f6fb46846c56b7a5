"""Computes only the candidates that are not pruned, as `backend/renderers/diffusers/row_mask.py`, in ComfyUI.

The wrapper is at CALC_COND_BATCH. CFG, post-CFG hooks, inpainting blends and the samplers' histories are
above it and keep the whole batch. ControlNets and the model are below it and get only the rows that are
alive. Pruned rows keep their last value. So the path of a surviving row is that of an unpruned run.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
import comfy.patcher_extension
import torch

from ..backend.core.errors import BadInput, RenderFailed

KEY = "reprise.row_mask"


class ComfyRowMask:
    """`alive` are the rows to compute; `rows` counts computed rows, `rows_full` rows without pruning.

    A row is one candidate under one conditioning, so with CFG each candidate is two rows. `chunk` is the most
    candidates computed at once; it is halved when memory runs out.
    """

    def __init__(self, count: int, chunk: int | None = None):
        self.count, self.chunk = count, chunk or count
        self.alive = list(range(count))
        self.rows = self.rows_full = 0
        self._last: dict[int, torch.Tensor] = {}

    def attach(self, model_options: dict[str, Any]) -> None:
        comfy.patcher_extension.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.CALC_COND_BATCH,
            KEY,
            self,
            model_options,
            is_model_options=True,
        )

    def __call__(self, executor, model, conds, x_in, timestep, model_options):
        management.throw_exception_if_processing_interrupted()
        used = sum(cond is not None for cond in conds)
        self.rows_full += used * self.count
        self.rows += used * len(self.alive)
        if len(self.alive) == self.count <= self.chunk:
            outputs = executor(model, conds, x_in, timestep, model_options)
        else:
            outputs = self._evaluate(executor, model, conds, x_in, timestep, model_options)
        for i, output in enumerate(outputs):
            self._last[i] = output
        return outputs

    def _evaluate(self, executor, model, conds, x_in, timestep, model_options) -> list[torch.Tensor]:
        whole = [
            self._last[i].clone() if i in self._last else torch.zeros_like(x_in) for i in range(len(conds))
        ]
        done = 0
        while done < len(self.alive):
            rows = self.alive[done : done + self.chunk]
            management.throw_exception_if_processing_interrupted()
            try:
                part = executor(
                    model,
                    [take_rows(cond, rows, self.count) for cond in conds],
                    x_in[rows],
                    timestep[rows] if len(timestep) == self.count else timestep,
                    model_options,
                )
            except management.OOM_EXCEPTION as error:
                if len(rows) == 1:
                    raise RenderFailed(
                        "not enough memory for one candidate at this size; use a smaller latent or model"
                    ) from error
                self.chunk = len(rows) // 2
                management.soft_empty_cache()
                continue
            for output, values in zip(whole, part, strict=True):
                output[rows] = values
            done += len(rows)
        return whole


def check_independent_rows(model_options: dict[str, Any], conds: list[dict[str, Any]]) -> None:
    """Raises BadInput if the model or a conditioning makes the rows of a batch depend on each other.

    A candidate would then differ from the same seed drawn alone, and change again once others are pruned.
    """
    transformer = model_options.get("transformer_options", {})
    if "easycache" in transformer:
        raise BadInput(
            "EasyCache and LazyCache skip steps by the mean of the batch, so candidates would change each "
            "other; remove the node"
        )
    if _made_by("TomePatchModel", transformer.get("patches", {}).get("attn1_patch", [])):
        raise BadInput(
            "Tome Patch Model merges random tokens in each call, so pruning would change the surviving "
            "pictures; remove the node"
        )
    if _made_by("SelfAttentionGuidance", model_options.get("sampler_post_cfg_function", [])):
        raise BadInput(
            "Self-Attention Guidance uses the attention of the last call for the whole batch, so pruning "
            "would mix up the candidates; remove the node"
        )
    for cond in conds:
        control = cond.get("control")
        while control is not None:
            hint = getattr(control, "cond_hint_original", None)
            if hint is not None and len(hint) > 1:
                raise BadInput(
                    f"the ControlNet's picture is a batch of {len(hint)}, but all candidates share one; "
                    "connect one picture"
                )
            control = getattr(control, "previous_controlnet", None)


def _made_by(node: str, functions: list[Any]) -> bool:
    """Whether the core node class `node` put one of these hooks into the model."""
    return any(node in getattr(function, "__qualname__", "") for function in functions)


def take_rows(value: Any, rows: list[int], count: int) -> Any:
    """`value` with every tensor of batch size `count` in it reduced to `rows`.

    It also changes comfy's COND objects (by `_copy_with`); ControlNets and hooks stay as they are.
    """
    if isinstance(value, torch.Tensor):
        return value[rows] if value.ndim > 1 and len(value) == count > 1 else value
    if isinstance(value, dict):
        return {key: take_rows(item, rows, count) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(take_rows(item, rows, count) for item in value)
    if hasattr(value, "_copy_with") and hasattr(value, "cond"):
        return value._copy_with(take_rows(value.cond, rows, count))
    return value

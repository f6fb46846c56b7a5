"""Evaluate only the candidates alive: the same idea as `backend/renderers/row_mask.py`, inside ComfyUI.

The wrapper sits at CALC_COND_BATCH: below CFG, post-CFG hooks, inpainting blends and every sampler's
history, which keep the whole batch; above ControlNets and the model, which see the rows alive only.
Dead rows are given their last value. So a survivor's path is that of the unpruned run.
"""

from __future__ import annotations

from typing import Any

import comfy.model_management as management
import comfy.patcher_extension
import torch

from ..backend.core.errors import BadInput, RenderFailed

KEY = "reprise.row_mask"


class ComfyRowMask:
    """`alive` holds the rows to evaluate; `rows` counts rows evaluated, `rows_full` rows asked for.

    One row is one candidate under one conditioning, so CFG makes two of each. `chunk` is the most rows
    evaluated at once; it halves by itself when memory runs out.
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
    """Raises BadInput where the model or a conditioning ties the rows of a batch together.

    A row would then be another picture than alone, and another again once rows beside it are pruned.
    """
    transformer = model_options.get("transformer_options", {})
    if "easycache" in transformer:
        raise BadInput(
            "EasyCache and LazyCache skip steps by the mean of the batch, so candidates would change each "
            "other; take the node out"
        )
    if _made_by("TomePatchModel", transformer.get("patches", {}).get("attn1_patch", [])):
        raise BadInput(
            "Tome Patch Model merges other tokens at random in each call, so survivors of pruning would be "
            "other pictures; take the node out"
        )
    if _made_by("SelfAttentionGuidance", model_options.get("sampler_post_cfg_function", [])):
        raise BadInput(
            "Self-Attention Guidance pairs the attention of the last call with the whole batch, so pruned "
            "candidates would mix up the others; take the node out"
        )
    for cond in conds:
        control = cond.get("control")
        while control is not None:
            hint = getattr(control, "cond_hint_original", None)
            if hint is not None and len(hint) > 1:
                raise BadInput(
                    f"the ControlNet's picture is a batch of {len(hint)}, and all candidates share one; "
                    "connect one picture"
                )
            control = getattr(control, "previous_controlnet", None)


def _made_by(node: str, functions: list[Any]) -> bool:
    """Whether a core node of that name put one of these hooks into the model."""
    return any(node in getattr(function, "__qualname__", "") for function in functions)


def take_rows(value: Any, rows: list[int], count: int) -> Any:
    """`value` with each tensor in it that carries the batch of `count` reduced to `rows`.

    Reaches into comfy's CONDs (`_copy_with`); ControlNets and hooks are left as they are.
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

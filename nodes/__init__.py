"""The ComfyUI nodes: a schema and a short `execute` that calls `backend/`. Only this room imports ComfyUI."""

from __future__ import annotations


def extension():
    """The pack's extension; its node list is the table of contents."""
    from comfy_api.latest import ComfyExtension

    from .chat import EndpointRewriter, RewriterFromClip
    from .loaders import LoadJudge, LoadRefiner, LoadRewriter, LoadShapeWorld
    from .parm import ParmBestOfN, ParmBestOfNAdvanced
    from .refiner import PripDescribe, PripRefiner
    from .reflection import ReflectionLoop, ReflectionStep
    from .rewriter import RePromptRewriterNode
    from .scorer import RewardScorer

    class Reprise(ComfyExtension):
        async def get_node_list(self):
            return [
                RePromptRewriterNode,
                PripRefiner,
                PripDescribe,
                RewardScorer,
                ParmBestOfN,
                ParmBestOfNAdvanced,
                ReflectionLoop,
                ReflectionStep,
                LoadRewriter,
                EndpointRewriter,
                RewriterFromClip,
                LoadRefiner,
                LoadJudge,
                LoadShapeWorld,
            ]

    return Reprise()

"""Settings to checkpoints: a folder for each method, `common` and `rollouts` for what they share."""

from pathlib import Path


def shipped_config(trainer: str, name: str) -> Path:
    """The YAML that comes with a trainer: ("grpo", "shapeworld"), ("prip-decoder", "paper"), …"""
    method, _, stage = trainer.replace("diffusion-dpo", "diffusion_dpo").partition("-")
    return Path(__file__).parent / method / "configs" / f"{stage}{'-' * bool(stage)}{name}.yaml"

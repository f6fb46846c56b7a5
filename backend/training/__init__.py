"""Trainings: a folder for each method, `common/` and `rollouts/` for what methods share, `rounds` of drawing
and learning."""

from pathlib import Path


def shipped_config(trainer: str, name: str) -> Path:
    """The YAML that comes with a trainer: ("grpo", "shapeworld"), ("prip-decoder", "paper"), …"""
    method, _, stage = trainer.replace("diffusion-dpo", "diffusion_dpo").partition("-")
    return Path(__file__).parent / method / "configs" / f"{stage}{'-' * bool(stage)}{name}.yaml"


def shipped_configs(trainer: str) -> list[str]:
    """The names of the YAMLs that come with a trainer."""
    pattern = shipped_config(trainer, "*")
    start = pattern.stem.removesuffix("*")
    return sorted(path.stem.removeprefix(start) for path in pattern.parent.glob(pattern.name))

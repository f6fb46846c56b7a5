"""Diffusion-DPO of a renderer's LoRA on pairs of pictures."""

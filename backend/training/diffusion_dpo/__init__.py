"""Diffusion-DPO: a renderer's LoRA learns from pairs of a better and a worse picture."""

"""Tiny pipelines of diffusers at random weights, built in code, and the table of what the renderer does with
them."""

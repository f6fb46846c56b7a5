"""Renderers that are pipelines of diffusers."""

"""Renderers that are saved workflows on ComfyUI servers."""

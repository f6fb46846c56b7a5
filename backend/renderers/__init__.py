"""Renderers: (prompt, seed) jobs -> images. Must not import rewriters, rewards or search."""

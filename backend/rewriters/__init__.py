"""Prompts to rewrites. Must not import renderers, rewards or search."""

"""Rewards: images or rewrites -> scores. Must not import renderers, rewriters or search."""

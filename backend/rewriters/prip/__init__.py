"""PRIP: a prompt, the embedding of an imagined picture, a refined prompt."""

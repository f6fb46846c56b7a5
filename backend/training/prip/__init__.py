"""PRIP's two supervised stages."""

"""Renderers that run diffusers' text-to-image pipelines."""

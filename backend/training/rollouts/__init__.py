"""Prompts, rewrites, pictures and scores that a policy learns from."""

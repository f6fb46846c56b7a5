"""Supervised fine-tuning: a rewriter learns from examples of rewrites."""

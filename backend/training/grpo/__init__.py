"""GRPO: a rewriter learns from the scores of its own rewrites' pictures."""

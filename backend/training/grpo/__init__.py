"""GRPO of a rewriter against a renderer."""

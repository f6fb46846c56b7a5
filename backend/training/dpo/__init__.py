"""DPO: a rewriter learns from pairs of a better and a worse rewrite."""

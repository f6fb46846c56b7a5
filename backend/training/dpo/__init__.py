"""DPO of a rewriter on pairs of rewrites."""

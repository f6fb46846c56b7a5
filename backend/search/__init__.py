"""Best of N, PARM's pruned search and reflection: pure loops over the role Protocols.

Must not import a model library, a renderer, a rewriter or a reward.
"""

"""Best of N, PARM's pruned search, and reflection: loops over the roles' Protocols.

Must not import a model library, a renderer, a rewriter or a reward.
"""

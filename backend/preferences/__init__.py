"""Preference pairs: of one prompt, a better and a worse picture or rewrite. Mined from runs, kept in a store.

Reads the files of finished runs and a ComfyUI server's history. Must not render, score or train.
"""

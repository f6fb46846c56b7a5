"""The recipes that make the embedded models from nothing: tokenizers, autoencoder, text encoders, renderers.

The stages run in that order and are resumable: a stage keeps one checkpoint in the work folder and, when
done, saves its model there with `save_pretrained`. `build.py` assembles the pipelines.
"""

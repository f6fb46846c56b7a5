"""How the embedded models are made, from nothing: tokenizers, autoencoder, text encoders, renderers.

Stages run in that order, each resumable: a stage keeps one checkpoint in the work folder and, when it
is done, leaves its model there in `save_pretrained` layout. `build.py` joins them into the pipelines.
"""

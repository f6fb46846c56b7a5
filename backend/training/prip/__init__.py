"""PRIP's two supervised stages: the Prompt Decoder and the Preference Encoder learn from a log of
pictures."""

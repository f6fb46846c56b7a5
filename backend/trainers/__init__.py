"""Config to checkpoint, a readable loop each. Must not import the command line or nodes."""

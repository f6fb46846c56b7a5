"""The reward server: images and prompts over HTTP to rewards that one thread owns."""

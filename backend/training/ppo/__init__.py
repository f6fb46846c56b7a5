"""PPO of PRIP's encoder against a renderer."""

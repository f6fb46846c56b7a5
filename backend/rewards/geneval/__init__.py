"""GenEval's detector and rules as a judge."""

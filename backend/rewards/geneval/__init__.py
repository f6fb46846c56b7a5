"""GenEval's detector and rules as a judge: prompts, rules, and the judge with its models."""

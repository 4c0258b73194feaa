"""Training runs: data, networks, recipes, and the paper's experiments."""

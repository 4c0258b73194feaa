"""Optimizers side by side on a small set of real tasks, at equal numbers of gradients: ``deeprelax compare``."""

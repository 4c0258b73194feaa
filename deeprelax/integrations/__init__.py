"""Glue for training libraries. Each module needs its library: ``from deeprelax.integrations.transformers import …``."""

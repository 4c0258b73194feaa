"""Data sets: loaded, checked, whitened."""

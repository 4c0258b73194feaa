"""The parts of ``bench/gpu.py``: what a machine with a GPU proves and measures."""

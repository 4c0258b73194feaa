"""The ``triton`` backend."""

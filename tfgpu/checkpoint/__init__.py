"""Exact checkpoints: the files, the callback that writes them, and what identifies a training."""

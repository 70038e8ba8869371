"""What `tfgpu evaluate` measures of a model, and what it writes about it."""

"""`tfgpu train`."""

"""`tfgpu predict`."""

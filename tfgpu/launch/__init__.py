"""`tfgpu launch`: starts the workers of one training, on this machine or on several."""

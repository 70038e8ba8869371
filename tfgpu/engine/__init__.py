"""What runs a Keras model on several devices: needs nothing of the rest of tfgpu but its errors."""

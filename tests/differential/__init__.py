"""Random cases on which `tfgpu.Model` and stock `keras.Model` are compared."""

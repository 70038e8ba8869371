"""The evaluation of a finished run's model: `tfgpu evaluate`."""

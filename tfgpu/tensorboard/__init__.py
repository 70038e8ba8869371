"""What TensorBoard shows of a training: metrics, the graph, pictures, settings, the profile."""

from tfgpu.tensorboard.callback import TensorBoard

__all__ = ["TensorBoard"]

"""The TensorBoard callback: metrics, performance, the graph, pictures, settings, the profile."""

from tfgpu.tensorboard.callback import TensorBoard

__all__ = ["TensorBoard"]

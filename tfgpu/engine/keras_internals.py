"""The private names of Keras and TensorFlow that the engine stands on, taken here and checked.

Each of them is used because no public name does the same. A version that lacks one, or gives it
other parameters, is refused when this module is imported, by name, and not found out later by
a hook that is no longer called.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf
from keras.src import backend
from keras.src.backend.common import global_state
from keras.src.backend.tensorflow import trainer as tensorflow_trainer
from keras.src.backend.tensorflow.optimizer import TFOptimizer
from keras.src.losses import loss as loss_module
from keras.src.random import seed_generator
from keras.src.trainers.compile_utils import CompileLoss
from keras.src.trainers.data_adapters import data_adapter_utils
from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
from keras.src.trainers.epoch_iterator import EpochIterator
from keras.src.trainers.trainer import Trainer, model_supports_jit
from tensorflow.python.data.ops import multi_device_iterator_ops
from tensorflow.python.distribute import distribute_lib
from tensorflow.python.distribute import values as distribute_values
from tensorflow.python.framework import kernels
from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable, ResourceVariable

__all__ = [
    "GLOBAL_SEED_GENERATOR",
    "BaseResourceVariable",
    "CompileLoss",
    "DistributedVariable",
    "EpochIterator",
    "GeneratorDataAdapter",
    "ResourceVariable",
    "SyncOnReadVariable",
    "TFEpochIterator",
    "TFOptimizer",
    "TensorFlowTrainer",
    "Trainer",
    "backend",
    "data_adapter_utils",
    "distribute_lib",
    "global_state",
    "kernels",
    "loss_module",
    "model_supports_jit",
    "multi_device_iterator_ops",
    "tensorflow_trainer",
]

TensorFlowTrainer = tensorflow_trainer.TensorFlowTrainer
TFEpochIterator = tensorflow_trainer.TFEpochIterator
DistributedVariable = distribute_values.DistributedVariable
SyncOnReadVariable = distribute_values.SyncOnReadVariable
GLOBAL_SEED_GENERATOR = seed_generator.GLOBAL_SEED_GENERATOR


def _require(owner: Any, name: str, *parameters: str) -> None:
    """Checks that `owner` has `name`, and that it takes `parameters` in this order.

    Raises:
        ImportError: It has not, or does not.
    """
    where = f"{getattr(owner, '__module__', '')}.{getattr(owner, '__name__', owner)}.{name}"
    versions = f"Keras {keras.__version__} with TensorFlow {tf.__version__}"
    found: Callable[..., Any] | None = getattr(owner, name, None)
    if found is None:
        raise ImportError(f"tfgpu needs {where}, which {versions} does not have")
    if parameters:
        given = tuple(inspect.signature(found).parameters)[: len(parameters)]
        if given != parameters:
            raise ImportError(
                f"tfgpu needs {where} to begin with the parameters {', '.join(parameters)}; "
                f"those of {versions} are {', '.join(given)}"
            )


for _owner, _name, *_parameters in (
    (TensorFlowTrainer, "train_step", "self", "data"),
    (TensorFlowTrainer, "test_step", "self", "data"),
    (TensorFlowTrainer, "predict_step", "self", "data"),
    (TensorFlowTrainer, "make_train_function", "self", "force"),
    (TensorFlowTrainer, "make_test_function", "self", "force"),
    (TensorFlowTrainer, "make_predict_function", "self", "force"),
    (TensorFlowTrainer, "_maybe_symbolic_build", "self", "iterator", "data_batch"),
    (TensorFlowTrainer, "_symbolic_build", "self", "iterator", "data_batch"),
    (Trainer, "_compute_loss", "self", "x", "y", "y_pred", "sample_weight", "training"),
    (Trainer, "_get_metrics_result_or_logs", "self", "logs"),
    (Trainer, "_resolve_auto_jit_compile", "self"),
    (EpochIterator, "_enumerate_iterator", "self"),
    (TFEpochIterator, "_get_iterator", "self"),
    (CompileLoss, "build", "self", "y_true", "y_pred"),
    (loss_module, "reduce_weighted_values", "values", "sample_weight", "mask", "reduction"),
    (loss_module, "scale_loss_for_distribution", "value"),
    (loss_module, "unscale_loss_for_distribution", "value"),
    (keras.metrics.Mean, "update_state", "self", "values", "sample_weight"),
    (keras.layers.Layer, "_clear_losses", "self"),
    (TFOptimizer, "_backend_apply_gradients", "self", "grads", "trainable_variables"),
    (TFOptimizer, "_clip_gradients", "self", "grads"),
    (TFOptimizer, "_apply_weight_decay", "self", "variables"),
    (TFOptimizer, "_backend_update_step", "self", "grads", "trainable_variables"),
    (TFOptimizer, "_update_model_variables_moving_average", "self"),
    (TFOptimizer, "_overwrite_model_variables_with_average_value", "self"),
    (keras.random.SeedGenerator, "next", "self", "ordered"),
    (distribute_lib, "_ThreadMode", "dist", "cross", "replica"),
    (distribute_lib, "_push_per_thread_mode", "context"),
    (distribute_lib, "_pop_per_thread_mode"),
    (distribute_lib, "_get_default_strategy"),
    (distribute_lib, "UpdateContext", "replica_id"),
    (distribute_lib.StrategyExtendedV2, "update", "self", "var", "fn", "args", "kwargs", "group"),
    (tf.distribute.ReplicaContext, "_replica_id"),
    (DistributedVariable, "_update", "self", "update_fn", "value"),
    (DistributedVariable, "_get_on_device_or_primary", "self"),
    (BaseResourceVariable, "assign", "self", "value"),
    (BaseResourceVariable, "_read_variable_op", "self"),
    (tf.distribute.MirroredStrategy, "_collective_key_base"),
    (multi_device_iterator_ops, "_create_device_dataset"),
    (kernels, "get_registered_kernels_for_op", "name"),
    (global_state, "get_global_attribute", "name"),
    (global_state, "set_global_attribute", "name"),
):
    _require(_owner, str(_name), *(str(p) for p in _parameters))

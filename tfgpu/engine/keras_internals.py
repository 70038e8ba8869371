"""The private names of Keras and TensorFlow that tfgpu uses, under public ones.

Each is used because no public name does the same. A version that lacks one, or gives it other
parameters, is refused when this module is imported: see `private_names`. No other module of the
package takes a private name, but for `tfgpu.machine.tensorflow_internals`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tfgpu.engine.private_names import (
    Attribute,
    Method,
    calling,
    newer_than_tried,
    require,
    versions,
)
from tfgpu.errors import VersionError, VersionWarning

try:
    from keras.src import api_export, backend
    from keras.src.backend.common import global_state, masking
    from keras.src.backend.tensorflow import nn
    from keras.src.backend.tensorflow import trainer as tensorflow_trainer
    from keras.src.losses import loss as loss_module
    from keras.src.models import functional, model
    from keras.src.random import seed_generator
    from keras.src.trainers import trainer
    from keras.src.trainers.compile_utils import CompileLoss
    from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter
    from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter
    from keras.src.trainers.epoch_iterator import EpochIterator
    from tensorflow.python.data.ops import multi_device_iterator_ops
    from tensorflow.python.distribute import distribute_lib, input_lib, mirrored_strategy
    from tensorflow.python.distribute import values as distribute_values
    from tensorflow.python.framework import config as framework_config
    from tensorflow.python.framework import function_def_to_graph, kernels, none_tensor
    from tensorflow.python.framework.errors_impl import InaccessibleTensorError
    from tensorflow.python.ops.resource_variable_ops import BaseResourceVariable, ResourceVariable
except ImportError as error:
    raise VersionError(f"tfgpu does not fit {versions()}: {error}") from error

__all__ = ["ArrayDataAdapter", "BaseResourceVariable", "CompileLoss", "GeneratorDataAdapter"]
__all__ += ["InaccessibleTensorError", "ResourceVariable"]

# ---- models and their trainer -----------------------------------------------------------------

_Model: Any = keras.Model
Functional = require(functional, "Functional")
makes_functional = require(model, "functional_init_arguments", "args", "kwargs")
supports_jit = require(trainer, "model_supports_jit", "model")
compute_output_spec = require(backend, "compute_output_spec", "fn")
reduce_per_replica = require(tensorflow_trainer, "reduce_per_replica", "values", "strategy")
concat = require(tensorflow_trainer, "concat", "tensors")
concat_ragged = require(tensorflow_trainer, "potentially_ragged_concat", "tensors")
as_array = require(tensorflow_trainer, "convert_to_np_if_not_ragged", "x")

own_strategy = Attribute(_Model, "_distribute_strategy")  # None: the default one.
compile_loss = Attribute(_Model, "_compile_loss")
compile_metrics = Attribute(_Model, "_compile_metrics")
compile_config = Attribute(_Model, "_compile_config")
loss_tracker = Attribute(_Model, "_loss_tracker")
given_jit_compile = Attribute(_Model, "_jit_compile")
initial_epoch = Attribute(_Model, "_initial_epoch")
takes_training = Attribute(keras.layers.Layer, "_call_has_training_arg")
own_losses = Attribute(keras.layers.Layer, "_losses")
is_trainable = Attribute(keras.layers.Layer, "_trainable")
flatten_layers = Method(_Model, "_flatten_layers", "self", "include_self")
compute_loss = Method(_Model, "_compute_loss", "self", "x", "y", "y_pred", "sample_weight")
unpickled = Method(_Model, "_unpickle_model", "bytesio")
symbolic_build = Method(_Model, "_symbolic_build", "self", "iterator", "data_batch")

for _step in ("train", "test", "predict"):
    require(_Model, f"{_step}_step", "self", "data")
    require(_Model, f"make_{_step}_function", "self", "force")
    require(_Model, f"{_step}_function")
for _caller in ("fit", "evaluate"):
    require(_Model, "_maybe_symbolic_build", "self", "iterator", "data_batch", called_by=_caller)
    require(_Model, "_get_metrics_result_or_logs", "self", "logs", called_by=_caller)
require(_Model, "_resolve_auto_jit_compile", "self", called_by="compile")
require(_Model, "_aggregate_additional_loss", "self", "loss", called_by="compute_loss")

# The mixin has no base; to a type checker it is what it is mixed into.
_Base: Any = keras.Model if TYPE_CHECKING else object


class TrainerHooks(_Base):
    """What Keras' trainer calls under private names, for a class derived from it to define.

    The names begin with `tfgpu_` because users derive from that class in turn.
    """

    _maybe_symbolic_build = calling("tfgpu_prepare")
    _resolve_auto_jit_compile = calling("tfgpu_resolve_jit_compile")

    def _get_metrics_result_or_logs(self, logs: Any) -> Any:
        logs, are_results = self.tfgpu_logs(logs)
        return logs if are_results else super()._get_metrics_result_or_logs(logs)

    def _aggregate_additional_loss(self, loss: Any) -> Any:
        return self.tfgpu_additional_loss(loss, super()._aggregate_additional_loss(loss))


def written_as(ours: type, theirs: type) -> None:
    """Has files of models name Keras' class for ours, so that they load without tfgpu."""
    name = api_export.get_name_from_symbol(theirs)
    if name is not None:
        api_export.REGISTERED_OBJS_TO_NAMES[ours] = name
    else:  # Not a public one: Keras writes where the class is defined.
        ours.__module__ = theirs.__module__


require(api_export, "REGISTERED_OBJS_TO_NAMES")
require(api_export, "get_name_from_symbol", "symbol")

# ---- data ----------------------------------------------------------------------------------------

TFEpochIterator = require(tensorflow_trainer, "TFEpochIterator")
epoch_dataset = Attribute(TFEpochIterator, "_distributed_dataset")
current_iterator = Attribute(EpochIterator, "_current_iterator")
known_batches = Attribute(EpochIterator, "_num_batches")
enumerate_epoch = Method(EpochIterator, "_enumerate_iterator", "self", called_by="__iter__")
warn_of_interruption = Method(EpochIterator, "_interrupted_warning", "self")
NoneTensorSpec = require(none_tensor, "NoneTensorSpec")  # tf.NoneTensorSpec from 2.20 on.
dataset_inputs = Method(tf.data.Dataset, "_inputs", "self")
distributed_from = Attribute(input_lib.DistributedDataset, "_original_dataset")
create_device_dataset = Method(multi_device_iterator_ops, "_create_device_dataset")

require(EpochIterator, "_get_iterator", "self", called_by="_enumerate_iterator")
for _name in ("data_adapter", "steps_per_epoch", "steps_per_execution"):
    require(EpochIterator, _name)
require(TFEpochIterator, "_distribute_strategy")
require(GeneratorDataAdapter, "generator")
for _size in ("batch_size", "num_batches", "has_partial_batch"):
    require(ArrayDataAdapter, _size)
require(tf.data.Dataset, "_variant_tensor")
require(multi_device_iterator_ops.OwnedMultiDeviceIterator, "_create_device_dataset")


# Keras' iterators over an epoch distribute their data when they are made, for nothing where other
# data take their place, and where a component has no rows TensorFlow fails at it. Here they do it
# when they are first read.


@functools.wraps(TFEpochIterator.__init__)
def _init(self: Any, distribute_strategy: Any = None, *args: Any, **kwargs: Any) -> None:
    EpochIterator.__init__(self, *args, **kwargs)
    self._distribute_strategy = distribute_strategy
    self._distributed_dataset = None


@functools.wraps(TFEpochIterator._get_iterator)
def _get_iterator(self: Any) -> Any:
    if self._distributed_dataset is None:
        dataset = self.data_adapter.get_tf_dataset()
        if not isinstance(dataset, tf.distribute.DistributedDataset):
            dataset = self._distribute_strategy.experimental_distribute_dataset(dataset)
        self._distributed_dataset = dataset
    return self._distributed_dataset


TFEpochIterator.__init__, TFEpochIterator._get_iterator = _init, _get_iterator


# From 3.11 on Keras enumerates (first step, last step, data) of executions; 3.10 (step, data), and
# its callbacks hear of the first step at the end of an execution too. Here they hear of the last.

_HAS_LAST_STEP = "begin_step" in EpochIterator.__next__.__code__.co_varnames


class _Steps(int):
    """The first step of an execution, with the last one."""

    last: int


def enumerated(epoch_iterator: Any) -> Iterator[tuple[int, int, Any]]:
    """First step, last step and data of each execution, as Keras enumerates them."""
    for found in enumerate_epoch.function(epoch_iterator):
        if _HAS_LAST_STEP:
            yield found
        else:
            step, data = found
            yield step, step + epoch_iterator.steps_per_execution - 1, data


def for_keras(executions: Iterator[tuple[int, int, Any]]) -> Iterator[tuple[Any, ...]]:
    """First step, last step and data of each execution, as Keras' loops take them."""
    for first, last, data in executions:
        if _HAS_LAST_STEP:
            yield first, last, data
        else:
            steps = _Steps(first)
            steps.last = last
            yield steps, data


def taken(found: tuple[Any, ...]) -> tuple[int, int, Any]:
    """What `for_keras` made of first step, last step and data."""
    return found if _HAS_LAST_STEP else (found[0], found[0].last, found[1])


def _with_last_step(end: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(end)
    def told(self: Any, batch: Any, logs: Any = None) -> Any:
        return end(self, getattr(batch, "last", batch), logs)

    return told


if not _HAS_LAST_STEP:
    for _step in ("train", "test", "predict"):
        _end = f"on_{_step}_batch_end"
        _told = _with_last_step(require(keras.callbacks.CallbackList, _end, "self", "batch"))
        setattr(keras.callbacks.CallbackList, _end, _told)


class WrappedDataset(tf.data.Dataset):
    """A data set of the elements of another one, for classes that say more about it.

    Args:
        dataset: The other one.
    """

    def __init__(self, dataset: tf.data.Dataset):
        self.wrapped = dataset
        super().__init__(dataset._variant_tensor)

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self.wrapped]

    @property
    def element_spec(self) -> Any:
        """Spec of an element."""
        return self.wrapped.element_spec


# ---- losses and metrics ----------------------------------------------------------------------

flat_losses = Attribute(CompileLoss, "_flat_losses")  # None before they are built.
loss_metrics = Attribute(CompileLoss, "_metrics")
reduce_weighted_values = Method(loss_module, "reduce_weighted_values", "values", "sample_weight")
scale_loss = Method(loss_module, "scale_loss_for_distribution", "value")
unscale_loss = Method(loss_module, "unscale_loss_for_distribution", "value")
call_loss = Method(keras.losses.Loss, "__call__", "self", "y_true", "y_pred")
call_layer = Method(keras.Layer, "__call__", "self")
mean_update = Method(keras.metrics.Mean, "update_state", "self", "values", "sample_weight")
sum_update = Method(keras.metrics.Sum, "update_state", "self", "values", "sample_weight")

require(CompileLoss, "build", "self", "y_true", "y_pred")
require(loss_module.Loss, "reduce_weighted_values", called_by="__call__")
require(_Model, "unscale_loss_for_distribution", called_by="train_step")

# Newer versions divide what an activity regulariser gives by the rows, older ones leave it the sum
# over them.

_Layer: Any = keras.layers.Layer
require(_Layer, "activity_regularizer")
activity_is_summed = "batch_size" not in inspect.unwrap(_Layer.__call__).__code__.co_varnames


class ActivityRegularizer:
    """The attribute of layers that holds theirs, read through a function.

    Args:
        read: Takes the regulariser of a layer, and returns what to call in its place.
    """

    def __init__(self, read: Callable[[Any], Any]):
        self._read = read

    def __get__(self, layer: Any, owner: Any = None) -> Any:
        if layer is None:
            return self
        try:
            regularizer = vars(layer)["activity_regularizer"]
        except KeyError:
            raise AttributeError("activity_regularizer") from None
        return regularizer if regularizer is None else self._read(regularizer)

    def __set__(self, layer: Any, regularizer: Any) -> None:
        # Where it is anyway, for copies and pickles of the layer.
        vars(layer)["activity_regularizer"] = regularizer


def read_activity_regularizers(read: Callable[[Any], Any]) -> None:
    """Has layers read theirs through a function; see `ActivityRegularizer`."""
    _Layer.activity_regularizer = ActivityRegularizer(read)


# ---- optimizers ------------------------------------------------------------------------------

_Optimizer = keras.optimizers.Optimizer
optimizer_strategy = Attribute(_Optimizer, "_distribution_strategy")
optimizer_variables = Attribute(_Optimizer, "_variables")
updated_variables = Attribute(_Optimizer, "_trainable_variables")
accumulated_gradients = Attribute(_Optimizer, "_accumulated_gradients")
calls = Attribute(_Optimizer, "_iterations")  # More than updates where it accumulates.
given_learning_rate = Attribute(_Optimizer, "_learning_rate")
variable_index = Method(_Optimizer, "_get_variable_index", "self", "variable")
apply_unclipped = Method(
    *(_Optimizer, "_backend_apply_gradients", "self", "grads", "trainable_variables"),
    called_by="apply",
)
class_with_apply = next(each for each in _Optimizer.__mro__ if "apply" in vars(each))
require(class_with_apply, "apply", "self", "grads", "trainable_variables")
require(_Optimizer, "update_step", "self", called_by="_distributed_tf_update_step")

# ---- variables and random numbers ------------------------------------------------------------

DistributedVariable = require(distribute_values, "DistributedVariable")
SyncOnReadVariable = require(distribute_values, "SyncOnReadVariable")
variable_value = Attribute(keras.Variable, "_value")
assign_value = Method(keras.Variable, "_direct_assign", "self", "value")
sum_of_copies = Method(SyncOnReadVariable, "_get_cross_replica", "self", called_by="value")
own_copy = Method(DistributedVariable, "_get_on_device_or_primary", "self")
assign_distributed = Method(DistributedVariable, "_update", "self", "update_fn", "value")
read_variable = Method(BaseResourceVariable, "_read_variable_op", "self", called_by="value")
draw_seed = Method(keras.random.SeedGenerator, "next", "self", "ordered")

require(BaseResourceVariable, "assign", "self", "value")
require(distribute_values.values_util, "_update")
require(DistributedVariable, "_distributed_container")

# Keras before 3.13 has its name in no constant.
_name = getattr(seed_generator, "GLOBAL_SEED_GENERATOR", "global_seed_generator")
# Of this thread; None before its first use.
global_generator = functools.partial(require(global_state, "get_global_attribute", "name"), _name)
set_global_generator = functools.partial(
    require(global_state, "set_global_attribute", "name"), _name
)

# Of Keras 3.10 a seed leaves that generator as it stands, and the second time gives other numbers.
_seed_all = keras.utils.set_random_seed


@functools.wraps(_seed_all)
def _set_random_seed(seed: int) -> None:
    _seed_all(seed)
    set_global_generator(None)


if "GLOBAL_SEED_GENERATOR" not in _seed_all.__code__.co_names:
    keras.utils.set_random_seed = _set_random_seed


def is_copy(variable: Any) -> bool:
    """Whether a variable is the copy that a distributed one has on one of the devices."""
    return hasattr(variable, "_distributed_container") or hasattr(
        variable.handle, "_distributed_container"
    )


# ---- strategies ------------------------------------------------------------------------------

strategy_update = Method(tf.distribute.StrategyExtended, "update", "self", "var", "fn", "args")

require(distribute_lib, "_ThreadMode", "dist", "cross", "replica")
require(distribute_lib, "_push_per_thread_mode", "context")
require(distribute_lib, "_pop_per_thread_mode")
require(distribute_lib, "_get_default_strategy")
require(distribute_lib, "_DefaultDistributionStrategy")
require(distribute_lib._DefaultDistributionExtended, "_retrace_functions_for_each_device")
require(distribute_lib, "UpdateContext", "replica_id")
require(tf.distribute.MirroredStrategy, "_collective_key_base")
require(mirrored_strategy.MirroredExtended, "_collective_key_base")
require(tf.distribute.ReplicaContext, "_local_replica_id", called_by="_replica_id")


def is_default(strategy: tf.distribute.Strategy) -> bool:
    """Whether it is the strategy of code outside of every scope."""
    return type(strategy) is distribute_lib._DefaultDistributionStrategy


def skip_collective_keys(count: int) -> None:
    """Has each `MirroredStrategy` made from now on number its collectives higher by `count`."""
    tf.distribute.MirroredStrategy._collective_key_base += count


class DefaultContext(tf.distribute.ReplicaContext):
    """The context of code outside of every scope, whose variables are a replica's copies.

    Args:
        replica_context: Of the replica.
    """

    def __init__(self, replica_context: Any):
        super().__init__(distribute_lib._get_default_strategy(), 0)
        self.replica_context = replica_context
        # By this TensorFlow's variables choose the copy.
        self._local_replica_id = replica_context._replica_id


@contextlib.contextmanager
def entered(context: Any, *, updating: bool) -> Iterator[None]:
    """Runs the block in a replica context.

    Args:
        context: The replica context.
        updating: Whether as what `StrategyExtended.update` calls on that replica.
    """
    mode = distribute_lib._ThreadMode(context.strategy, None, context)
    distribute_lib._push_per_thread_mode(mode)
    try:
        with distribute_lib.UpdateContext(context._replica_id if updating else None):
            yield
    finally:
        distribute_lib._pop_per_thread_mode()


# What is traced of a `tf.function` is kept for each device but under this strategy, of one device.
distribute_lib._get_default_strategy().extended._retrace_functions_for_each_device = True

# ---- graphs ----------------------------------------------------------------------------------

TracedFunction = type(tf.function(lambda: None))
ScratchGraph = require(tf.__internal__, "FuncGraph")
concrete_functions = Method(TracedFunction, "_list_all_concrete_functions", "self")
graph_of_function = require(function_def_to_graph, "function_def_to_graph", "fdef")
op_determinism_enabled = require(framework_config, "is_op_determinism_enabled")
registered_kernels = require(kernels, "get_registered_kernels_for_op", "name")

PINNED = (MASK, _LOGITS) = ("_keras_mask", "_keras_logits")
"""Attributes in which Keras pins further tensors to a tensor."""

require(masking, MASK)
require(nn, _LOGITS)

# ---- callbacks -------------------------------------------------------------------------------

_TensorBoard: Any = keras.callbacks.TensorBoard
_Swap = keras.callbacks.SwapEMAWeights
averages_in_model = Attribute(_Swap, "_ema_weights_in_model")
swap_averages = Method(_Swap, "_swap_variables", "self")
finalize_averages = Method(_Swap, "_finalize_ema_values", "self")
batches_since_saving = Attribute(keras.callbacks.ModelCheckpoint, "_batches_seen_since_last_saving")
last_batch_seen = Attribute(keras.callbacks.ModelCheckpoint, "_last_batch_seen")

close_writers = Method(_TensorBoard, "_close_writers", "self", called_by="on_train_end")
collect_learning_rate = Method(_TensorBoard, "_collect_learning_rate", "self", "logs")
log_weights = Method(_TensorBoard, "_log_weights", "self", "epoch", called_by="on_epoch_end")
require(_TensorBoard, "_push_writer", "self", "writer", "step", called_by="on_train_begin")
require(_TensorBoard, "_pop_writer", "self", called_by="on_train_end")


class TensorBoardHooks(keras.callbacks.TensorBoard):
    """Keras' callback, with its private attributes and the methods it calls under public names."""

    train_directory = Attribute(_TensorBoard, "_train_dir")
    train_writer = Attribute(_TensorBoard, "_train_writer")
    validation_writer = Attribute(_TensorBoard, "_val_writer")
    open_writers = Attribute(_TensorBoard, "_writers")
    entered_writers = Attribute(_TensorBoard, "_prev_summary_state")
    writes_train_graph = Attribute(_TensorBoard, "_should_write_train_graph")
    global_batch = Attribute(_TensorBoard, "_global_train_batch")
    is_to_profile = Attribute(_TensorBoard, "_should_trace")
    first_profiled = Attribute(_TensorBoard, "_start_batch")
    last_profiled = Attribute(_TensorBoard, "_stop_batch")
    is_profiling = Attribute(_TensorBoard, "_profiler_started")
    start_profiler = Attribute(_TensorBoard, "_start_profiler")
    stop_profiler = Attribute(_TensorBoard, "_stop_profiler")

    _train_writer = property(lambda self: self.writer("train", self.train_directory))
    _val_writer = property(lambda self: self.writer("val", self._val_dir))
    _push_writer = calling("push_writer")
    _pop_writer = calling("pop_writer")
    _close_writers = calling("close_writers")
    _collect_learning_rate = calling("collect_learning_rate")


def _log_by_path(self: Any, epoch: int) -> None:
    """Histograms, and pictures, of the weights of each layer."""
    with self.train_writer.as_default():
        for weight in (weight for layer in self.model.layers for weight in layer.weights):
            name = weight.path.replace(":", "_")
            self.summary.histogram(f"{name}/histogram", weight, step=epoch)
            if self.write_images:
                self._log_weight_as_image(weight, f"{name}/image", epoch)


# Keras 3.10 wrote those of all layers under one name, such as "kernel".
if "path" not in log_weights.function.__code__.co_names:
    require(_TensorBoard, "_log_weight_as_image", "self", "weight", "weight_name", "epoch")
    setattr(TensorBoardHooks, log_weights.name, _log_by_path)


# Last, since what does not fit is an error.
if _newer := newer_than_tried():
    warnings.warn(_newer, VersionWarning, stacklevel=2)

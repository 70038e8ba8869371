"""Models of which it is known whether XLA compiles them."""

import keras
import numpy as np
import tensorflow as tf

RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, 4)).astype("float32")
Y = RNG.normal(size=(12, 2)).astype("float32")


def dense(kind):
    inputs = keras.Input((4,))
    return kind(inputs, keras.layers.Dense(2)(keras.layers.Dense(3, "tanh")(inputs)))


def build(kind, strategy, make=dense, **settings):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = make(kind)
        settings.setdefault("loss", "mse")
        model.compile(keras.optimizers.SGD(0.1), **settings)
    return model


def fit(model, x=X, y=Y, **arguments):
    arguments = {"batch_size": 5, "epochs": 2, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(x, y, **arguments).history  # The last batch has two rows.


class Distinct(keras.metrics.Metric):
    """Counts distinct positive labels; the shape of what `tf.unique` gives depends on them."""

    def __init__(self, name="distinct", **options):
        super().__init__(name=name, **options)
        self.count = self.add_variable((), "zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        labels, _ = tf.unique(tf.boolean_mask(y_true[:, 0], y_true[:, 0] > 0))
        self.count.assign_add(tf.cast(tf.size(labels), tf.float32))

    def result(self):
        return self.count.value


def is_compiled(function):
    """Whether XLA compiles a part of the graphs of a traced function."""
    return any(programs(graph) for graph in _graphs(function))


def outside_xla(function):
    """The types of operations of a traced function that are in none of XLA's programs."""
    found = set()
    for graph in _graphs(function):
        bodies = {f.signature.name: f.node_def for f in graph.library.function}
        waiting, seen = [graph.node], set()
        while waiting:
            for node in waiting.pop():
                found.add(node.op)
                called = set() if _is_program(node) else _called(node) - seen
                seen |= called
                waiting += [bodies[name] for name in called]
    return found


def programs(graph):
    """The names of the functions of a graph that XLA compiles, each as one program."""
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {name for node in nodes if _is_program(node) for name in _called(node)}


def _is_program(node):
    return "_XlaMustCompile" in node.attr and node.attr["_XlaMustCompile"].b


def _called(node):
    return {value.func.name for value in node.attr.values() if value.HasField("func")}


def _graphs(function):
    graphs = [
        concrete.graph.as_graph_def()
        for one in function.traced
        for concrete in one._list_all_concrete_functions()
    ]
    assert graphs
    return graphs

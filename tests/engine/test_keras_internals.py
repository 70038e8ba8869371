"""Private names of Keras and TensorFlow: taken in one place, checked there, and still called."""

import ast
import functools
import importlib
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfgpu
from tfgpu.engine import keras_internals as private
from tfgpu.engine import losses, update
from tfgpu.engine.batches import Batches
from tfgpu.engine.private_names import Attribute, Method, newer_than_tried, require
from tfgpu.errors import VersionError

PACKAGE = Path(tfgpu.__file__).parent
ALLOWED = ("engine/keras_internals.py", "machine/tensorflow_internals.py")
KERAS_TUNER = "tune/oracle.py"  # It takes those of KerasTuner.
LIBRARIES = ("keras", "tensorflow")
VERSIONS = f"Keras {keras.__version__} with TensorFlow {tf.__version__}"


# ---- where they are taken ---------------------------------------------------------------------

# Public in spite of their names: of named tuples, and `os._exit`.
CONVENTIONS = {"_replace", "_asdict", "_fields", "_make", "_exit"}
BY_NAME = {"getattr", "setattr", "hasattr", "delattr", "attrgetter", "methodcaller", "replace"}


def is_private(name):
    return (
        name.startswith("_") and not name.startswith("__") and name.isidentifier() and name != "_"
    )


def texts(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]


@functools.cache
def taken():
    """The private names that the allowed modules use."""
    names = set()
    for path in ALLOWED:
        tree = ast.parse((PACKAGE / path).read_text())
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {node.value for node in texts(tree)}
    return {name for name in names if is_private(name)}


def defined(tree):
    """The private names that a module defines, as globals or as attributes of its classes."""
    names = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    names |= {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    names |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node)
    }
    return {name for name in names if is_private(name)}


def is_self(node):
    """Whether an attribute is one of `self`, `cls` or `super()`."""
    of = node.value
    if isinstance(of, ast.Call):
        of = of.func
    return isinstance(of, ast.Name) and of.id in ("self", "cls", "super")


def code_names(code):
    inner = [code_names(c) for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*inner)


def inherited(cls, among):
    """The private names of libraries' classes that `cls`, or one derived from it, derives from."""
    names = set()
    orders = [getattr(kind, "__mro__", ()) for kind in among]
    for base in {base for order in orders if cls in order for base in order}:
        if base.__module__.partition(".")[0] not in LIBRARIES:
            continue
        for name, value in vars(base).items():
            names.add(name)
            function = getattr(value, "fget", value)
            if isinstance(function, types.FunctionType):
                while hasattr(function, "__wrapped__"):
                    function = function.__wrapped__
                names |= code_names(function.__code__)
    return {name for name in names if is_private(name)}


def foreign(source, module=None):
    """The uses of private names of other libraries in a module's source."""
    tree = ast.parse(source)
    own, others = defined(tree), taken()
    found = []
    in_classes = set()

    def check(node, name, bad):
        if is_private(name) and name not in CONVENTIONS and bad:
            found.append(f"line {node.lineno}: {name}")

    for cls in [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]:
        if not cls.bases or module is None or not hasattr(module, cls.name):
            names = set()
        else:
            names = inherited(getattr(module, cls.name), vars(module).values())
        for node in cls.body:
            if isinstance(node, ast.FunctionDef):
                check(node, node.name, node.name in names)
            if isinstance(node, ast.Assign | ast.AnnAssign):
                for target in [t for t in ast.walk(node) if isinstance(t, ast.Name)]:
                    check(node, target.id, target.id in names)
        for node in ast.walk(cls):
            if isinstance(node, ast.Attribute) and is_self(node):
                in_classes.add(node)
                check(node, node.attr, node.attr in names or node.attr not in own)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in in_classes:
            check(node, node.attr, node.attr not in own or node.attr in others)
            if ast.unparse(node) in ("keras.src", "tensorflow.python", "tf.python"):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names]
            if isinstance(node, ast.ImportFrom):
                for name in modules:
                    check(node, name, True)
                modules = [f"{node.module}.{name}" for name in modules]
            found += [
                f"line {node.lineno}: {name}"
                for name in modules
                if f"{name}.".startswith(("keras.src.", "tensorflow.python."))
            ]
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            for text in [t for t in node.args if t in texts(node)]:
                check(text, text.value, called in BY_NAME and text.value not in own)
    for node in texts(tree):
        check(node, node.value, node.value in others)  # Whatever it is handed to.
        if node.value.startswith(("keras.src.", "tensorflow.python.")) and " " not in node.value:
            found.append(f"line {node.lineno}: {node.value}")
    return sorted(set(found))


FILES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).as_posix() not in (*ALLOWED, KERAS_TUNER)
)


@pytest.mark.parametrize("path", FILES)
def test_module_takes_no_private_name_of_keras_or_tensorflow(path):
    source = (PACKAGE / path).read_text()
    module = None
    for package in ("tf2onnx", "mlflow", "wandb"):  # Of extras.
        if re.search(rf"^(from|import) {package}\b", source, re.MULTILINE):
            pytest.importorskip(package)
    if "class " in source:  # What its classes inherit is known to Python alone.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(".".join(("tfgpu", *Path(path).with_suffix("").parts)))
    assert foreign(source, module) == []


@pytest.mark.parametrize(
    "source",
    [
        "from keras.src import backend",
        "import tensorflow.python.framework.ops",
        "from tensorflow.python import tf2",
        "import importlib\nimportlib.import_module('keras.src.losses')",
        "import keras\nkeras.src",
        "def f(model):\n    return model._flatten_layers()",
        "def f(model):\n    model._initial_epoch = 3",
        "def f(self):\n    return self._value",
        "def f(model):\n    return getattr(model, '_not_known_anywhere', None)",
        "names = ('_loss_tracker',)",
        "def f(iterator):\n    vars(iterator)['_enumerate_iterator'] = None",
        "def _metrics(): pass\ndef f(loss):\n    return loss._metrics",
        "import keras\nclass A(keras.Model):\n    def f(self):\n        return self._compile_loss",
        "import keras\nclass A(keras.Model):\n    def _maybe_symbolic_build(self): pass",
        "import keras\nclass A(keras.Model):\n    _jit_compile = None",
        "import keras\nclass A(keras.Model):\n    def f(self):\n        self._losses = []",
        "import keras\nclass A(keras.layers.Layer):\n"
        "    def f(self):\n        super()._clear_losses()",
        "import tfgpu\nclass A(tfgpu.Model):\n    def f(self):\n        self._loss_tracker = 0",
    ],
)
def test_use_of_a_private_name_is_found(source):
    module = types.ModuleType("snippet")
    if "class" in source:
        exec(source, vars(module))
    assert foreign(source, module)


@pytest.mark.parametrize(
    "source",
    [
        "import keras\nkeras.Model.train_step",
        "class A:\n    def _own(self):\n        return self._own",
        "def f(named):\n    return named._replace(x=1)",
        "_text = '__name__'",
        "import keras\nclass A(keras.Model):\n    def f(self):\n        self._no_name_of_keras = 1",
    ],
)
def test_a_name_of_our_own_is_not_found(source):
    module = types.ModuleType("snippet")
    if "class" in source:
        exec(source, vars(module))
    assert foreign(source, module) == []


# ---- that they are checked --------------------------------------------------------------------


class Library:
    """Stands in for a class of Keras of another version."""

    def __init__(self):
        self._kept = 1

    def _hook(self, other):
        pass


@pytest.mark.parametrize(
    "take",
    [
        lambda: require(Library, "_gone"),
        lambda: require(Library, "_hook", "self", "data"),
        lambda: require(Library, "_hook", called_by="__init__"),
        lambda: require(Library, "_hook", called_by="gone"),
        lambda: Attribute(Library, "_gone"),
        lambda: Method(Library, "_hook", "self", "data"),
    ],
    ids=["name", "parameters", "call", "caller", "attribute", "method"],
)
def test_what_does_not_fit_is_refused_with_the_versions(take):
    with pytest.raises(VersionError, match=VERSIONS) as caught:
        take()
    assert "\n" not in str(caught.value)


def test_attribute_that_a_method_sets_is_there():
    assert Attribute(Library, "_kept")(Library()) == 1


@pytest.mark.parametrize(
    ("library", "version", "said"),
    [
        ("keras", "3.16.0", "Keras 3.16.0 (tried up to 3.15) is newer"),
        ("keras", "4.0.0", "Keras 4.0.0 (tried up to 3.15) is newer"),
        ("tensorflow", "2.22.0-rc1", "TensorFlow 2.22.0-rc1 (tried up to 2.21) is newer"),
        ("keras", "3.15.9", ""),
        ("keras", "3.10.0", ""),
    ],
)
def test_a_newer_version_than_was_tried_is_told(monkeypatch, library, version, said):
    monkeypatch.setattr(sys.modules["keras"], "__version__", "3.15.0")
    monkeypatch.setattr(sys.modules["tensorflow"], "__version__", "2.21.0")
    monkeypatch.setattr(sys.modules[library], "__version__", version)
    assert newer_than_tried().startswith(said) and bool(newer_than_tried()) == bool(said)


@pytest.mark.slow
def test_a_newer_keras_gives_one_warning_and_works():
    script = """
import keras, numpy as np
keras.__version__ = "3.99.0"
from tfgpu.cli import entry
def work(argv):
    import tfgpu
    inputs = keras.Input((2,))
    model = tfgpu.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    model.fit(np.zeros((4, 2)), np.zeros((4, 1)), verbose=0)
entry.run(work, [])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if "3.99.0" in line]
    assert line.startswith("tfgpu: warning: Keras 3.99.0 (tried up to 3.15) is newer")


def test_command_ends_with_one_line_where_a_hook_is_gone():
    script = """
from keras.src.backend.tensorflow.trainer import TensorFlowTrainer
del TensorFlowTrainer._maybe_symbolic_build
from tfgpu.cli import entry
from tfgpu.train import __main__ as train
entry.run(train.main, ["--progress=none"])
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = [line for line in ended.stderr.splitlines() if line.startswith("tfgpu: ")]
    assert ended.returncode == 5, ended.stderr
    assert lines == ended.stderr.splitlines()[-1:]
    assert "_maybe_symbolic_build" in lines[0] and VERSIONS in lines[0]


# ---- that they are called ---------------------------------------------------------------------

X = np.random.RandomState(0).randn(10, 6).astype("float32")
Y = np.random.RandomState(1).randn(10, 3).astype("float32")


class OwnStep(tfgpu.Model):
    def train_step(self, data):
        return super().train_step(data)


def compiled(cls):
    inputs = keras.Input((6,))
    x = keras.layers.BatchNormalization()(keras.layers.Dropout(0.5)(inputs))
    model = cls(inputs, keras.layers.Dense(3)(x))
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, gradient_accumulation_steps=2)
    model.compile(optimizer, "mse")
    return model


HOOKS = {
    "compile": [(private.TrainerHooks, "_resolve_auto_jit_compile")],
    "fit": [
        (private.TrainerHooks, "_maybe_symbolic_build"),
        (private.TrainerHooks, "_get_metrics_result_or_logs"),
        (private.TFEpochIterator, "_get_iterator"),
        (Batches, "executions"),
        (losses.ShardedCompileLoss, "build"),
        (private.loss_module, "reduce_weighted_values"),
        (keras.metrics.Mean, "update_state"),
        (keras.random.SeedGenerator, "next"),
        (update, "_accumulate"),
        (tf.distribute.StrategyExtended, "update"),
        (private.DistributedVariable, "_update"),
        (private.BaseResourceVariable, "_read_variable_op"),
        (private.TensorBoardHooks, "_push_writer"),
        (private.TensorBoardHooks, "_pop_writer"),
        (private.TensorBoardHooks, "_close_writers"),
        (private.TensorBoardHooks, "_collect_learning_rate"),
    ],
    "fit with a step of its own": [
        (private.loss_module, "scale_loss_for_distribution"),
        (private.loss_module, "unscale_loss_for_distribution"),
    ],
    "evaluate": [
        (private.TrainerHooks, "_maybe_symbolic_build"),
        (private.TrainerHooks, "_get_metrics_result_or_logs"),
        (private.TFEpochIterator, "_get_iterator"),
        (Batches, "executions"),
    ],
    "predict": [(private.TFEpochIterator, "_get_iterator"), (Batches, "executions")],
    "iterate": [(private.WrappedDataset, "_inputs")],
}


@pytest.fixture(scope="module")
def calls(mirrored2, tmp_path_factory):
    """How often each hook was called, by what was done and its name."""
    counts = {(doing, name): 0 for doing, hooks in HOOKS.items() for _, name in hooks}
    doing = None

    def counting(name, function):
        def counted(*args, **kwargs):
            if (doing, name) in counts:
                counts[doing, name] += 1
            return function(*args, **kwargs)

        return counted

    board = tfgpu.TensorBoard(tmp_path_factory.mktemp("logs"), update_freq=1, write_graph=False)
    with pytest.MonkeyPatch.context() as patch, mirrored2.scope():
        for owner, name in {hook for hooks in HOOKS.values() for hook in hooks}:
            patch.setattr(owner, name, counting(name, getattr(owner, name)))
        doing = "compile"
        model, own = compiled(tfgpu.Model), compiled(OwnStep)
        doing = "fit"
        model.fit(X, Y, batch_size=4, verbose=0, callbacks=[board])
        doing = "fit with a step of its own"
        own.fit(X, Y, batch_size=4, verbose=0)
        doing = "evaluate"
        model.evaluate(X, Y, batch_size=4, verbose=0)
        doing = "predict"
        model.predict(X, batch_size=4, verbose=0)
        doing = "iterate"
        list(private.WrappedDataset(tf.data.Dataset.range(2)))
    return counts


@pytest.mark.parametrize(
    ("doing", "name"), [(doing, name) for doing, hooks in HOOKS.items() for _, name in hooks]
)
def test_hook_is_called(calls, doing, name):
    assert calls[doing, name] > 0

"""Trains a tiny network in each of some combinations; a module, and a worker's program.

    python tests/train_cells.py STRATEGY REPLICAS CELLS

STRATEGY is one_device, mirrored or multi_worker_mirrored (whose workers `TF_CONFIG` names), CELLS
a JSON list of [precision, jit_compile, steps_per_execution, input]. Prints a line that begins
`RESULT ` and holds a JSON list, one outcome a cell.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

EXAMPLES, BATCH, EPOCHS = 44, 12, 2
STEPS = EPOCHS * -(-EXAMPLES // BATCH)  # The last batch of an epoch holds 8.


def train(strategy, cell):
    """One cell: losses, updates made, a hash of every number, what `evaluate` says and reads."""
    import keras
    import numpy as np

    import tfgpu
    from tfgpu.data.inputs import evaluation_batches, make_resident, training_batches

    precision, jit_compile, steps_per_execution, source = cell
    rng = np.random.RandomState(0)
    labels = (np.arange(EXAMPLES) % 3).astype("int32")
    images = rng.randint(0, 80, (EXAMPLES, 8, 8, 1)).astype("uint8")
    images[np.arange(EXAMPLES), :, 2 * labels] += 150
    examples, evaluated, rows_read = _examples(images, labels), *_noting(images, labels)
    resident = make_resident(examples, strategy) if source == "resident" else ()

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    try:
        with strategy.scope():
            inputs = keras.Input((8, 8, 1))
            x = keras.layers.Rescaling(1 / 255)(inputs)
            x = keras.layers.Conv2D(6, 3, activation="relu")(x)
            x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))
            model = tfgpu.Model(inputs, keras.layers.Dense(3, dtype="float32")(x))
            model.compile(
                optimizer=keras.optimizers.SGD(0.1, momentum=0.9),
                loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
                jit_compile=jit_compile,
                steps_per_execution=steps_per_execution,
            )
    finally:
        keras.config.set_dtype_policy("float32")
    batches = training_batches(
        examples, batch_size=BATCH, seed=0, augment=("crop",), resident=resident
    )
    collectives_before = len(_eager_collectives)
    history = model.fit(
        batches, steps_per_epoch=batches.steps_per_epoch, epochs=EPOCHS, shuffle=False, verbose=0
    ).history
    test = model.evaluate(
        evaluation_batches(evaluated, batch_size=20, resident=resident), verbose=0, return_dict=True
    )
    state = [v.numpy() for v in [*model.weights, *model.optimizer.variables]]
    return {
        "loss": history["loss"],
        "test_loss": test["loss"],
        "iterations": int(model.optimizer.iterations.numpy()),
        "rows_read": sorted(rows_read),
        "eager_collectives": len(_eager_collectives) - collectives_before,
        "digest": hashlib.sha256(b"".join(value.tobytes() for value in state)).hexdigest(),
    }


def numbers(outcome):
    """What is the same for every worker."""
    return {name: outcome[name] for name in ("loss", "test_loss", "iterations", "digest")}


def _examples(images, labels, note=None):
    import tensorflow as tf

    from tfgpu.data.examples import Examples

    def read(positions):
        if note is not None:
            same = tf.numpy_function(note, [positions], tf.int64)
            positions = tf.ensure_shape(same, positions.shape)
        return tf.gather(images, positions), tf.gather(labels, positions)

    return Examples(
        num_examples=EXAMPLES,
        read=read,
        decode=lambda image, label: (tf.ensure_shape(image, (8, 8, 1)), label),
    )


def _noting(images, labels):
    """The same examples, and the list of the positions at which they are read."""
    noted = []

    def note(positions):
        noted.extend(positions.tolist())
        return positions

    return _examples(images, labels, note), noted


_eager_collectives = []


def _note_eager_collectives():
    """Notes each collective that is started from Python and not in a graph."""
    import tensorflow as tf
    from tensorflow.python.distribute.cross_device_utils import CollectiveReplicaLauncher

    reduce = CollectiveReplicaLauncher.all_reduce

    def noted(*args, **kwargs):
        if tf.executing_eagerly():
            _eager_collectives.append(None)
        return reduce(*args, **kwargs)

    CollectiveReplicaLauncher.all_reduce = noted


def start(strategy, replicas, cells, **env):
    """Starts this file as a program of its own, with `env` added to the environment."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, __file__, strategy, str(replicas), json.dumps(cells)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": path, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def results(processes, *, timeout):
    """What each program printed; ends all of them whatever happens."""
    found = []
    try:
        for process in processes:
            output, _ = process.communicate(timeout=timeout)
            assert process.returncode == 0, output
            (line,) = [line for line in output.splitlines() if line.startswith("RESULT ")]
            found.append(json.loads(line.removeprefix("RESULT ")))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return found


def free_ports(count):
    """Ports of loopback that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def two_workers(cells, *, timeout):
    """Trains the cells with two workers on loopback; a list of outcomes for each worker."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = []
    for index in range(2):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        workers.append(start("multi_worker_mirrored", 2, cells, TF_CONFIG=json.dumps(task)))
    return results(workers, timeout=timeout)


def main(name, replicas, cells):
    from tfgpu.cli import startup

    startup.prepare_environment()
    tf = startup.import_tensorflow()
    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_inter_op_parallelism_threads(2)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    local = 1 if name == "multi_worker_mirrored" else replicas
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * local
    )
    if name == "multi_worker_mirrored":
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    elif name == "mirrored":
        strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(replicas)])
    else:
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    assert strategy.num_replicas_in_sync == replicas
    _note_eager_collectives()
    outcomes = [train(strategy, cell) for cell in cells]
    # Metrics in the logs of Keras 3.10 may be tensors.
    print("RESULT", json.dumps(outcomes, default=float), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))

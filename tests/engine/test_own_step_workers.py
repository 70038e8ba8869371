"""Steps of one's own on several workers of which each has one device."""

import json
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
from fresh_process import python
from threads_as_workers import free_ports

MODEL = """
import json

import keras
import numpy as np
import tensorflow as tf

import tfgpu

X = np.random.default_rng(0).normal(size=(22, 6)).astype("float32")
Y = X[:, :3] ** 2


def trained(cls, strategy):
    class Own(cls):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                error = tf.reduce_mean((self(x, training=True) - y) ** 2)
                loss = tf.sqrt(error) + tf.reduce_sum(x) / 100
            weights = self.trainable_variables
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights))
            self.seen.assign_add(tf.reduce_sum(y))
            return {"loss": loss, "rows": tf.shape(x)[0]}

    keras.utils.set_random_seed(1)
    with strategy.scope():
        inputs = keras.Input((6,))
        model = Own(inputs, keras.layers.Dense(3)(inputs))
        model.seen = keras.Variable(0.0, trainable=False)
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
    logs = model.fit(X, Y, batch_size=7, epochs=2, shuffle=False, verbose=0).history
    return logs | {"weights": [w.tolist() for w in model.get_weights()]}
"""
WORKER = """
strategy = tf.distribute.MultiWorkerMirroredStrategy()
print(json.dumps(trained(tfgpu.Model, strategy)))
"""


def test_two_workers_train_what_one_device_trains():
    cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(2)]}

    def work(index):
        task = {"cluster": cluster, "task": {"type": "worker", "index": index}}
        return python(MODEL + WORKER, TF_CONFIG=json.dumps(task), CUDA_VISIBLE_DEVICES="-1")

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(work, range(2)))
    defined = {}
    exec(MODEL, defined)
    expected = defined["trained"](keras.Model, defined["tf"].distribute.get_strategy())
    for each in done:
        assert each.returncode == 0, each.stderr[-2000:]
        found = json.loads(each.stdout.splitlines()[-1])
        assert found["rows"] == expected["rows"]
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
        for one, two in zip(expected["weights"], found["weights"], strict=True):
            np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5)

"""What exact checkpoints cost a model of 25 million parameters.

    python experiments/checkpoint_cost.py

Trains `keras.applications.ResNet50` (SGD with momentum: 47 million numbers a checkpoint) on
32x32 images, in turns of 20 s with one checkpoint every 10 s and of 20 s without, and
compares neighbours. Takes about five minutes. Writes
`experiments/results/checkpoint_cost.json`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from typing import Any

from versus import compare, machine, spread, write

TURN, EVERY = 20.0, 10.0  # seconds


def main() -> None:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()

    from tfgpu.cli import startup
    from tfgpu.machine import runtime

    startup.prepare_environment()
    startup.import_tensorflow()
    import keras
    import numpy as np
    import tensorflow as tf

    import tfgpu
    from tfgpu.checkpoint.backup_and_restore import BackupAndRestore
    from tfgpu.data.examples import Examples
    from tfgpu.data.inputs import training_batches

    runtime.start()
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (512, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, 512, dtype=np.int32)

    def read(positions: Any) -> tuple[Any, Any]:
        return tf.gather(images, positions), tf.gather(labels, positions)

    examples = Examples(512, read, lambda image, label: (image, label))
    resident = tuple(tf.Variable(array, trainable=False) for array in (images, labels))
    batches = training_batches(examples, batch_size=options.batch_size, seed=0, resident=resident)
    network = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=10)
    model = tfgpu.Model(network.inputs, network.outputs)
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), "sparse_categorical_crossentropy")
    rates: dict[bool, list[float]] = {True: [], False: []}

    class Turns(BackupAndRestore):
        """Saves every ten seconds in every other turn."""

        waited: list[float] = []

        def on_train_begin(self, logs: Any = None) -> None:
            super().on_train_begin(logs)
            self.saving, self.warm, self.steps = True, 0, 0

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            pass  # No checkpoint but the timed ones.

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.warm += 1
            if self.warm <= 3:
                self.started = self.saved = time.perf_counter()
                return
            self.steps += 1
            now = time.perf_counter()
            if self.saving and now - self.saved >= EVERY:
                self.saved = now
                self._back_up()
                self.waited.append(time.perf_counter() - now)
            if time.perf_counter() - self.started >= TURN:
                # A save that is under way belongs to the turn that began it.
                self._store.close()
                seconds = time.perf_counter() - self.started
                rates[self.saving].append(self.steps * options.batch_size / seconds)
                self.saving, self.steps = not self.saving, 0
                self.started = time.perf_counter()
                self.saved = self.started - EVERY / 2
                self.model.stop_training = len(rates[False]) == options.pairs

    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(folder, save_freq=10**9)
        model.fit(
            batches,
            steps_per_epoch=batches.steps_per_epoch,
            epochs=10**6,
            shuffle=False,
            verbose=0,
            callbacks=[turns],
        )
        turns.close()
    slowdown = compare(rates[False], rates[True])
    print(f"parameters {model.count_params():,}")
    print(
        f"with {spread(rates[True])['median']:.1f}, "
        f"without {spread(rates[False])['median']:.1f} samples/s"
    )
    print(
        f"training without checkpoints is {slowdown['median']:.3f} times as fast "
        f"({slowdown['low']:.3f} to {slowdown['high']:.3f}), n={options.pairs}; the loop waits "
        f"{spread(turns.waited)['median']:.2f} s for each"
    )
    write(
        "checkpoint_cost.json",
        {
            "machine": machine(),
            "parameters": model.count_params(),
            "seconds_between_checkpoints": EVERY,
            "samples_per_second": {"with": rates[True], "without": rates[False]},
            "without_over_with": slowdown,
            "seconds_waited": spread(turns.waited),
        },
    )


if __name__ == "__main__":
    main()

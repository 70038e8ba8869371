"""CIFAR-10 to 94 % in seconds: the speed record's recipe, trained by Keras' `fit`.

    python experiments/airbench94.py --runs=10

Needs CIFAR-10 prepared for TFDS in `--data_dir` or TFDS_DATA_DIR. The recipe is airbench94 with
Muon (K. Jordan, arXiv:2404.00498 and its repository), which reached 94.01 % (n=200) in 2.59 s on an
A100 with PyTorch 2.4. This one reached 94.11 % (n=10) in 1.23 s on an H200. That is of the images
as they were published. Of a copy that is JPEG-coded it is 90.7 % (n=10), of which two CPU cores
took 57 minutes (90.9 %, n=1, `--runs=1 --precision=float32 --no-jit_compile --no-warm_up`); see
docs/results.md. `airbench94_pytorch.py` compares the first epoch with PyTorch's.

**What is counted**, as the record counts it: the initial values of the whitening layer, the
training with all its shuffling and augmentation, and the last evaluation with its test-time
average. Not counted: reading the data and bringing them, as uint8, to the device; other initial
values; compilation, which a whole training of the same size with random labels comes before for;
and the evaluation without the average. All of it stays in one process, traced and compiled once.
`--no-warm_up` does without that first training, which on a CPU takes as long as the others; what
is traced is counted then.

CIFAR-10 as TFDS prepares it is coded as PNG, without loss. How the images are coded is in what is
written ("coding"): from those that are JPEG-coded PyTorch reaches 90.8 % (n=10) as well.

Writes `experiments/results/airbench94.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cifar10_arrays import NOTES, load
from versus import machine, write

from tfgpu.cli import startup
from tfgpu.errors import Error, RequestError

PRECISIONS = ("mixed_float16", "mixed_bfloat16", "float32")
FILTERS, BIASES, HEAD = 0.24, 0.053, 0.67  # Rates at the start.
DECAY = 2e-6  # Times the batch.
SMOOTHING = 0.2
WHITENING_IMAGES, WHITENING_EPOCHS = 5000, 3
EVALUATION_BATCH = 1000  # Of which the network sees six views each at once.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is trained; the defaults are the record's.

    Attributes:
        epochs: Over the training images.
        batch_size: Images a step; what is left of an epoch is dropped.
        precision: Keras' policy. float16 without a loss scale, which a summed loss does not need.
        jit_compile: Whether XLA compiles the steps.
        width: Of the network, times the record's.
        sliced_pooling: See `tfgpu.models.airbench`.
        freeze: Whether the steps after the first three epochs are a function of their own, which
            takes no gradient of the whitening layer's bias: its rate is 0 from there on.
    """

    epochs: int = 8
    batch_size: int = 2000
    precision: str = "mixed_float16"
    jit_compile: bool = True
    width: float = 1.0
    sliced_pooling: bool = True
    freeze: bool = True


class Trainer:
    """The network, compiled once, and the data in the device's memory.

    Args:
        recipe: What is trained.
        train: uint8 images (n, 32, 32, 3) and int32 labels (n,).
        test: The same, of the test split.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
    ):
        import keras
        import tensorflow as tf

        from tfgpu.data.examples import Examples
        from tfgpu.data.inputs import make_resident
        from tfgpu.models.airbench import airbench
        from tfgpu.models.classification_loss import classification_loss

        if len(train[0]) < recipe.batch_size:
            raise RequestError(
                f"--batch_size={recipe.batch_size} is more than the {len(train[0])} training "
                "images, and a smaller batch is dropped: use a smaller one or a larger --limit"
            )
        self.recipe = recipe
        self.steps_per_epoch = len(train[0]) // recipe.batch_size
        self.steps = recipe.epochs * self.steps_per_epoch
        classes = int(train[1].max()) + 1
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(recipe.precision)
        try:
            model = airbench(
                image_shape=train[0].shape[1:],
                num_classes=classes,
                width=recipe.width,
                whitened=True,
                sliced_pooling=recipe.sliced_pooling,
            )
        finally:
            keras.config.set_dtype_policy(before)
        self.optimizer = make_optimizer(recipe, self.steps_per_epoch)
        self.model = model
        loss = classification_loss(num_classes=classes, label_smoothing=SMOOTHING)
        loss.reduction = "sum"
        model.compile(
            self.optimizer,
            loss,
            jit_compile=recipe.jit_compile,
            steps_per_execution=self.steps_per_epoch,
            auto_scale_loss=False,
        )
        self._freezing = freezing(model.get_layer("whiten").bias)
        self._examples = Examples.from_arrays(*train)
        self._resident = make_resident(self._examples, tf.distribute.get_strategy(), arrays=train)
        images, labels = self._resident[0]
        random = np.random.default_rng(0).integers(0, classes, len(train[1]), np.int32)
        with tf.device(images.device):
            self._random = ((images, tf.constant(random)),)
            starts = range(0, len(test[0]), EVALUATION_BATCH)
            self._test = [
                tuple(tf.constant(part[start : start + EVALUATION_BATCH]) for part in test)
                for start in starts
            ]
        self._test_images = len(test[0])
        self._correct = tf.function(
            self._correct_of, jit_compile=recipe.jit_compile, autograph=False
        )

    def train(self, *, seed: int, random_labels: bool = False) -> dict[str, float]:
        """Trains from new initial values.

        Args:
            seed: Decides them, the order of the images, and their augmentation.
            random_labels: For the training that comes before the others.

        Returns:
            Accuracy on the test split, with ("accuracy") and without ("accuracy_plain") the
            average over views; "loss", the mean over the training; and the seconds of "whitening",
            "training", "evaluation", and all of these ("seconds").
        """
        from tfgpu.models.airbench import reinitialise, whitening_kernel

        reinitialise(self.model, seed=seed)
        for variable in self.optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        resident = self._random if random_labels else self._resident
        whiten = self.model.get_layer("whiten")
        whiten.kernel.value.numpy()  # Nothing is left to do on the device.

        batches = self._batches(seed, resident)

        begin = time.perf_counter()
        whiten.kernel.assign(whitening_kernel(resident[0][0], count=WHITENING_IMAGES))
        whitened = time.perf_counter()
        history = self._fit(batches, self.steps)
        trained = time.perf_counter()
        # Launched one after another, and waited for once.
        counts = [self._correct(images, labels) for images, labels in self._test]
        plain, averaged = np.sum([count.numpy() for count in counts], axis=0)
        end = time.perf_counter()
        return {
            "accuracy": float(averaged) / self._test_images,
            "accuracy_plain": float(plain) / self._test_images,
            "loss": history.history["loss"][-1] / self.recipe.batch_size,
            "whitening": whitened - begin,
            "training": trained - whitened,
            "evaluation": end - trained,
            "seconds": end - begin,
        }

    def _batches(self, seed: int, resident: Any) -> Any:
        """The recipe's batches: shuffled, mirrored in every second epoch, and shifted."""
        from tfgpu.data.augment import cropping
        from tfgpu.data.inputs import training_batches

        return training_batches(
            self._examples,
            batch_size=self.recipe.batch_size,
            seed=seed,
            augment=("alternating_flip", cropping(2)),
            resident=resident,
            drop_remainder=True,
        )

    def _fit(self, batches: Any, steps: int, *, frozen: bool = False) -> Any:
        """Trains for some steps, which are one epoch for Keras: it asks for no result between."""
        first = 0 if frozen else WHITENING_EPOCHS * self.steps_per_epoch
        self._freezing.first = first if self.recipe.freeze else steps
        return self.model.fit(
            batches, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[self._freezing]
        )

    def _correct_of(self, images: Any, labels: Any) -> Any:
        """How many images are classified rightly: without the average over views, and with it."""
        import tensorflow as tf

        from tfgpu.models.airbench import VIEW_WEIGHTS, view_logits

        logits = view_logits(self.model, images)
        averaged = tf.tensordot(tf.constant(VIEW_WEIGHTS), logits, 1)
        right = [
            tf.equal(tf.argmax(each, axis=-1, output_type=tf.int32), labels)
            for each in (logits[0], averaged)
        ]
        return tf.reduce_sum(tf.cast(right, tf.int32), axis=1)

    def breakdown(self, *, steps: int = 50, rounds: int = 3) -> dict[str, float]:
        """What a step takes, and what the beginning and the end of `fit` take beside the steps.

        Args:
            steps: Of a longer `fit`, beside which a shorter one is timed.
            rounds: Of both, of which the fastest count.

        Returns:
            Milliseconds "step_ms" of the first epochs, "frozen_step_ms" of those after them, and
            "fit_ms"; and "images_per_second" and "tflops" of the first ones.
        """
        from tfgpu.machine import flops

        few = max(1, steps // 10)

        def seconds(count: int, frozen: bool) -> float:
            batches = self._batches(0, self._resident)
            begin = time.perf_counter()
            self._fit(batches, count, frozen=frozen)
            return time.perf_counter() - begin

        found = {}
        for frozen in (False, True):
            longer, shorter = (
                min(seconds(count, frozen) for _ in range(rounds)) for count in (steps, few)
            )
            found[frozen] = (longer - shorter) / (steps - few)
        rate = self.recipe.batch_size / found[False]
        return {
            "step_ms": 1e3 * found[False],
            "frozen_step_ms": 1e3 * found[True],
            "fit_ms": 1e3 * (shorter - few * found[True]),
            "images_per_second": rate,
            "tflops": 1e-12 * rate * flops.count(self.model).training,
        }


def freezing(variable: Any) -> Any:
    """A callback that has a variable train in the steps before `first` alone.

    The steps without it are traced for themselves, once in the life of the callback, and compute
    nothing that only its gradient takes. Executions have to end where `first` says.
    """
    import keras

    class Freezing(keras.callbacks.Callback):
        first = 0

        def __init__(self) -> None:
            super().__init__()
            self._functions: dict[bool, Any] = {}

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            trains = batch < self.first
            # Read where the step is traced, which is when the function is first called.
            variable.trainable = trains
            self.model.train_function = self._functions.get(trains)
            self._functions[trains] = self.model.make_train_function()

    return Freezing()


def make_optimizer(recipe: Recipe, steps_per_epoch: int) -> Any:
    """Muon for the filters and SGD for the rest, with all rates falling linearly to 0."""
    import keras

    from tfgpu.models.muon import Group, MuonSGD

    def falling(rate: float, epochs: int) -> Any:
        return keras.optimizers.schedules.PolynomialDecay(
            rate, epochs * steps_per_epoch, end_learning_rate=0.0
        )

    decay = DECAY * recipe.batch_size
    sgd = {"momentum": 0.85}
    return MuonSGD(
        [
            Group("conv./kernel$", falling(FILTERS, recipe.epochs), momentum=0.6, muon=True),
            Group(
                "whiten/bias$",
                falling(BIASES, WHITENING_EPOCHS),
                weight_decay=decay / BIASES,
                **sgd,
            ),
            Group("/beta$", falling(BIASES, recipe.epochs), weight_decay=decay / BIASES, **sgd),
            Group("head/kernel$", falling(HEAD, recipe.epochs), weight_decay=decay / HEAD, **sgd),
        ]
    )


def run(
    recipe: Recipe | None = None,
    *,
    runs: int = 10,
    seed: int = 0,
    warm_up: bool = True,
    data_dir: str | None = None,
    limit: int | None = None,
    breakdown: bool = False,
    profile: str | None = None,
    max_seconds: float | None = None,
    say: Callable[[str], Any] = print,
) -> dict[str, Any]:
    """Trains several times in this process and returns what is written as JSON.

    Args:
        recipe: What is trained; None for the record's.
        runs: Trainings, of the seeds from `seed` on.
        seed: Of the first one.
        warm_up: Whether a training with random labels, which is not counted, comes before.
        data_dir: TFDS's folder; None for TFDS_DATA_DIR.
        limit: How many images of each split are taken; None for all.
        breakdown: Whether to time a step.
        profile: A folder for TensorBoard's profile of one more training.
        max_seconds: After which, from the call on, no training begins.
        say: Called with each line of the report.
    """
    if runs < 1:
        raise RequestError(f"--runs={runs}: at least one training is needed")
    startup.prepare_environment()
    tf = startup.import_tensorflow()
    from tfgpu.machine import flops, hardware

    begin = time.perf_counter()
    recipe = recipe or Recipe()
    train, test, provenance = load(data_dir, limit=limit)
    trainer = Trainer(recipe, train, test)
    compilation = None
    if warm_up:
        start = time.perf_counter()
        trainer.train(seed=seed, random_labels=True)
        compilation = time.perf_counter() - start
        say(f"compiled in {compilation:.1f} s, the first training included")
    rows: list[dict[str, Any]] = []
    for number in range(runs):
        if rows and max_seconds is not None and time.perf_counter() - begin > max_seconds:
            say(f"stopped after {number} of {runs} trainings: {max_seconds:g} s are over")
            break
        rows.append({"seed": seed + number, **trainer.train(seed=seed + number)})
        row = rows[-1]
        say(
            f"seed {row['seed']}: {row['accuracy']:.4f} ({row['accuracy_plain']:.4f} without the "
            f"average) in {row['seconds']:.3f} s (whitening {row['whitening']:.3f}, training "
            f"{row['training']:.3f}, evaluation {row['evaluation']:.3f})"
        )
    device = hardware.logical_devices("GPU", "CPU")[0]
    training = statistics.median(row["training"] for row in rows)
    images = trainer.steps * recipe.batch_size
    per_image = flops.count(trainer.model).training
    result: dict[str, Any] = {
        "recipe": dataclasses.asdict(recipe),
        "counted": "whitening, training with augmentation, and evaluation with its average"
        + ("" if warm_up else ", and tracing and compilation")
        + "; not counted: the data's way to the device, other initial values"
        + (", compilation" if warm_up else ""),
        "dataset": {key: provenance[key] for key in ("name", "version", "fingerprint")},
        "images": {"training": len(train[0]), "test": len(test[0])},
        "coding": provenance["coding"],
        "note": NOTES.get(provenance["coding"], ""),
        "device": hardware.description(device),
        "machine": machine(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")
        },
        "parameters": trainer.model.count_params(),
        "flops_per_image": per_image,
        "pflop": 1e-15 * images * per_image,
        "steps": trainer.steps,
        "first_training_seconds": compilation,
        "images_per_second": images / training,
        "tflops": 1e-12 * images * per_image / training,
        "runs": rows,
    }
    for name in ("accuracy", "accuracy_plain", "seconds", "training"):
        result[name] = _spread([row[name] for row in rows])
    if breakdown:
        result["breakdown"] = trainer.breakdown()
        say(", ".join(f"{name} {value:.3g}" for name, value in result["breakdown"].items()))
    if profile is not None:
        tf.profiler.experimental.start(profile)
        try:
            trainer.train(seed=seed)
        finally:
            tf.profiler.experimental.stop()
    accuracy, seconds = result["accuracy"], result["seconds"]
    say(
        f"n={len(rows)}: accuracy {accuracy['mean']:.4f} (deviation {accuracy['deviation']:.4f}), "
        f"{seconds['mean']:.3f} s (deviation {seconds['deviation']:.3f}), "
        f"{result['images_per_second']:,.0f} images/s, {result['tflops']:.2f} TFLOP/s"
    )
    return result


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "deviation": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "max": max(values),
    }


def main(argv: list[str] | None = None) -> None:
    """Runs what the flags say."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data_dir", default=os.environ.get("TFDS_DATA_DIR"))
    parser.add_argument("--limit", type=int, help="images of each split")
    parser.add_argument("--epochs", type=int, default=Recipe.epochs)
    parser.add_argument("--batch_size", type=int, default=Recipe.batch_size)
    parser.add_argument("--width", type=float, default=Recipe.width)
    parser.add_argument("--precision", choices=PRECISIONS, default=Recipe.precision)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--jit_compile", action=flag, default=Recipe.jit_compile)
    parser.add_argument("--sliced_pooling", action=flag, default=Recipe.sliced_pooling)
    parser.add_argument("--freeze", action=flag, default=Recipe.freeze)
    parser.add_argument("--warm_up", action=flag, default=True)
    parser.add_argument("--breakdown", action=flag, default=False)
    parser.add_argument("--profile", help="folder for TensorBoard's profile of one more training")
    parser.add_argument("--output", default="airbench94.json", help="in experiments/results")
    options = vars(parser.parse_args(argv))
    fields = [field.name for field in dataclasses.fields(Recipe)]
    recipe = Recipe(**{name: options.pop(name) for name in fields})
    output = options.pop("output")
    try:
        result = run(recipe, **options)
    except Error as error:
        print(f"tfgpu: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    write(output, result)


if __name__ == "__main__":
    main()

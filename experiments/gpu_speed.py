"""What of `gpu_report.py` measures speed, one group a process that has the device to itself.

    python experiments/gpu_speed.py GROUP

prints one line of JSON a figure, as `gpu_checks.py` does.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_place import Place, examples, say

from tfgpu.machine.hardware_monitor import HardwareMonitor

PROFILE = "GPU_REPORT_PROFILE"
"""Of the environment: a folder for TensorBoard's profiles of what measures speed."""


def profile_folder(group: str) -> str | None:
    """Where the profile of a group goes; None where none is asked for."""
    folder = os.environ.get(PROFILE)
    return folder and str(Path(folder, group))


def watched(place: Place) -> HardwareMonitor:
    """Samples utilisation, memory and power while a `with` block runs."""
    return HardwareMonitor.of_devices(place.names, interval=0.1)


def used(place: Place, monitor: HardwareMonitor, tflops: float) -> dict[str, Any]:
    """The share of a float16 matrix product, and what was sampled."""
    from tfgpu.machine.peak_rate import peak_flops

    peak = 1e-12 * peak_flops(f"{place.kind}:0", dtype="float16")
    return {"tflops": tflops, "of_matrix_products": tflops / peak, "hardware": monitor.summary()}


def matrix_products() -> None:
    """The rate of large matrix products: TF32, float16, bfloat16, and float32 proper."""
    place = Place()
    tf = place.tf
    from tfgpu.machine.peak_rate import peak_flops

    rates = {}

    def rate(dtype: str) -> float:
        with tempfile.TemporaryDirectory() as folder:  # Measured now, whatever is known.
            cache = Path(folder, "peak.json")
            return 1e-12 * peak_flops(f"{place.kind}:0", dtype=dtype, cache=cache)

    for dtype in ("float16", "bfloat16", "float32"):
        rates[dtype] = rate(dtype)
    if place.on_gpu:
        rates["float32 with TF32"] = rates["float32"]
        tf.config.experimental.enable_tensor_float_32_execution(False)
        rates["float32"] = rate("float32")
        say("float16 is faster than float32", rates["float16"] > 2 * rates["float32"], **rates)
        fast = rates["float32 with TF32"] > 2 * rates["float32"]
        say("TF32 is faster than float32", fast, **rates)
    say("TFLOP/s of matrix products", None, **rates)


def lenet() -> None:
    """`lenet` with `fit` of tfgpu and of stock Keras, in turn: mixed_float16, XLA."""
    place = Place()
    tf = place.tf
    import keras

    from tfgpu.data.inputs import make_resident, training_batches
    from tfgpu.machine import flops
    from tfgpu.models.lenet import lenet as build

    batch, steps, rounds = (512, 1000, 10) if place.on_gpu else (64, 4, 2)
    keras.config.set_dtype_policy("mixed_float16")
    strategy = place.strategy()
    data = examples(tf, batch * 90 if place.on_gpu else 256)

    def compiled(model: Any) -> Any:
        model.compile(
            keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
            jit_compile=True,
            steps_per_execution=min(50, steps),
        )
        return model

    with strategy.scope():
        ours = compiled(build(image_shape=(32, 32, 3), num_classes=10))
    batches = training_batches(
        data, batch_size=batch, seed=0, resident=make_resident(data, strategy)
    )
    network = build(image_shape=(32, 32, 3), num_classes=10)
    stock = compiled(keras.Model(network.inputs, network.outputs))
    stream = tf.data.Dataset.from_tensor_slices(data.load_arrays()).shuffle(data.num_examples)
    stream = stream.repeat().batch(batch, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

    def seconds(model: Any, source: Any) -> float:
        start = time.perf_counter()
        model.fit(source, steps_per_epoch=steps, epochs=1, verbose=0, shuffle=False)
        return time.perf_counter() - start

    first = {"tfgpu": seconds(ours, batches), "keras": seconds(stock, stream)}
    pairs = [(seconds(ours, batches), seconds(stock, stream)) for _ in range(rounds)]
    ratios = sorted(theirs / mine for mine, theirs in pairs)
    with watched(place) as monitor:
        seconds(ours, batches)
    rates = {
        name: batch * steps / statistics.median(pair[i] for pair in pairs)
        for i, name in enumerate(("tfgpu", "keras"))
    }
    say(
        "lenet is at least 5 times as fast as with stock Keras",
        ratios[len(ratios) // 2] >= 5 if place.on_gpu else None,
        images_per_second=rates,
        ratio={"median": ratios[len(ratios) // 2], "low": ratios[0], "high": ratios[-1]},
        n=rounds,
        batch=batch,
        first_seconds=first,
        peak_bytes=place.memory()["peak"],
        **used(place, monitor, 1e-12 * flops.count(ours).training * rates["tfgpu"]),
    )


def resnet50() -> None:
    """ResNet-50 on 224x224 images of noise: mixed_float16, XLA."""
    place = Place()
    tf = place.tf
    import keras

    from tfgpu.data.inputs import make_resident, training_batches
    from tfgpu.machine import flops
    from tfgpu.models.resnet import resnet50 as build

    batch, steps, side, rounds = (256, 20, 224, 10) if place.on_gpu else (4, 1, 64, 2)
    keras.config.set_dtype_policy("mixed_float16")
    strategy = place.strategy()
    data = examples(tf, 4 * batch, side=side, classes=100)
    with strategy.scope():
        model = build(image_shape=(side, side, 3), num_classes=1000)
        model.compile(
            keras.optimizers.SGD(0.1, momentum=0.9),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=True,
            steps_per_execution=steps,
        )
    batches = training_batches(
        data, batch_size=batch, seed=0, augment=("flip",), resident=make_resident(data, strategy)
    )

    def seconds() -> float:
        start = time.perf_counter()
        model.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False)
        return time.perf_counter() - start

    first = seconds()
    with watched(place) as monitor:
        rates = sorted(batch * steps / seconds() for _ in range(rounds))
    folder = profile_folder("resnet50")
    if folder is not None:
        with tf.profiler.experimental.Profile(folder):
            seconds()
    per_image = flops.count(model).training
    say(
        "ResNet-50 reaches 2,500 images/s",
        rates[rounds // 2] >= 2500 if place.on_gpu else None,
        images_per_second={"median": rates[rounds // 2], "low": rates[0], "high": rates[-1]},
        n=rounds,
        batch=batch,
        first_seconds=first,
        peak_bytes=place.memory()["peak"],
        **used(place, monitor, 1e-12 * per_image * rates[rounds // 2]),
    )


def airbench() -> None:
    """The speed recipe: time to 94 % on CIFAR-10."""
    place = Place()
    import airbench94

    if not place.on_gpu:
        say("94 % of CIFAR-10 in 2.6 s", None, "takes an hour and more on a CPU: airbench94.py")
        return
    from tfgpu.errors import Error

    try:
        with watched(place) as monitor:
            result = airbench94.run(
                runs=10, breakdown=True, max_seconds=110, profile=profile_folder("airbench")
            )
    except Error as error:
        say("94 % of CIFAR-10 in 2.6 s", None, f"not tried: {error}")
        return
    accuracy, seconds = result["accuracy"], result["seconds"]
    keys = ("accuracy", "accuracy_plain", "seconds", "training", "images_per_second", "parameters")
    keys += ("first_training_seconds", "breakdown", "recipe", "dataset", "coding", "runs")
    say(
        "94 % of CIFAR-10 in 2.6 s",
        accuracy["mean"] >= 0.94 and seconds["mean"] <= 2.6,
        result["note"],
        **{key: result[key] for key in keys},
        **used(place, monitor, result["tflops"]),
    )


SPEED: dict[str, Callable[[], None]] = {
    "matrix_products": matrix_products,
    "lenet": lenet,
    "resnet50": resnet50,
    "airbench": airbench,
}
"""By name; each has the device to itself."""

if __name__ == "__main__":
    SPEED[sys.argv[1]]()

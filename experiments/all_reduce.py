"""What a sum over two workers costs, by its bytes, its buckets and the link between them.

    python experiments/all_reduce.py

Two workers, bound to a core each, sum vectors of 4 bytes to 64 MB, and train three networks: lenet
(0.25 MB of gradients), a perceptron of 28 million parameters and ResNet-50 (24 million) on 32x32
images. Each step is taken with buckets of several sizes, in turn, and without any exchange. The
workers talk over loopback and, with the rights to make network namespaces, over a pair of virtual
Ethernet devices of 1 Gbit/s (token bucket filter). From the vectors' times it fits the
latency and the bandwidth of the formula in docs/scaling.md, whose predictions
`experiments/scaling_model.py` compares with the steps. Takes 20 minutes on 2 cores of an AMD EPYC.
Writes `experiments/results/all_reduce.json`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from versus import compare, machine, spread, write

from tfgpu.bench import interleaved_timing

SIZES = [4, 4_000, 40_000, 248_024, 1 << 20, 4 << 20, 16 << 20, 64 << 20]
"""Bytes of the vectors."""

LAYOUTS = ["4", "1", "16", "64", "one", "forward"]
"""Megabytes of a bucket; all in one; buckets of 4 MB with the first layers' first."""

MODELS = ["lenet", "perceptron", "resnet50"]
BATCH = 16  # Of a worker.
STEPS = {"lenet": 32, "perceptron": 4, "resnet50": 2}  # Of an execution.


def main() -> None:
    """Measures link by link."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--links", default="loopback,1000", help="loopback, or Mbit/s")
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "batch": BATCH}
    for link in options.links.split(","):
        try:
            with _hosts(link) as hosts:
                found[link] = _measure(hosts, rounds=options.rounds)
        except PermissionError as error:
            print(f"{link}: left out, {error}")
            found[link] = {"left_out": str(error)}
    write("all_reduce.json", found)


def _measure(hosts: Sequence[tuple[str, list[str]]], *, rounds: int) -> dict[str, Any]:
    workers = Workers(hosts)
    try:
        times: dict[int, list[float]] = {size: [] for size in SIZES}
        for _ in range(rounds):
            for size in SIZES:
                times[size].append(workers.ask({"bytes": size})["seconds"])
        medians = {size: spread(values)["median"] for size, values in times.items()}
        latency, bandwidth = fit(medians)
        print(f"latency {1e3 * latency:.2f} ms, bandwidth {bandwidth / 1e9:.2f} GB/s")
        steps = {}
        for model in MODELS:
            steps[model] = _steps(workers, model, rounds=rounds)
        return {
            "vectors": {size: {"seconds": times[size], **spread(times[size])} for size in SIZES},
            "latency_seconds": latency,
            "bytes_per_second": bandwidth,
            "steps": steps,
        }
    finally:
        workers.close()


def _steps(workers: Workers, model: str, *, rounds: int) -> dict[str, Any]:
    layouts = LAYOUTS if model == "resnet50" else ["4", "one"]
    requests = [{"model": model, "layout": layout} for layout in ["none", *layouts]]
    answers: list[list[dict[str, Any]]] = [[] for _ in requests]
    for _ in range(rounds + 1):
        for request, of_one in zip(requests, answers, strict=True):
            of_one.append(workers.ask(request))
    seconds = [[answer["seconds"] for answer in of_one[1:]] for of_one in answers]
    compute = spread(seconds[0])["median"]
    found: dict[str, Any] = {"compute_seconds": seconds[0]}
    for layout, of_one, values in zip(layouts, answers[1:], seconds[1:], strict=True):
        sizes = of_one[0]["buckets"]
        found[layout] = {
            "bucket_bytes": sizes,
            "seconds": values,
            **spread(values),
            "over_4_MB": compare(values, seconds[1]),
            "all_reduce_seconds": spread([a["all_reduce"] for a in of_one[1:]])["median"],
            "exposed_seconds": spread([a["exposed"] for a in of_one[1:]])["median"],
        }
        print(
            f"{model}, buckets {layout}: {1e3 * spread(values)['median']:.1f} ms, computing "
            f"{1e3 * compute:.1f}, {found[layout]['over_4_MB']['median']:.3f} of buckets of 4 MB"
        )
    return found


def fit(seconds: Mapping[int, float]) -> tuple[float, float]:
    """Fits the time of a ring all-reduce between two workers.

    Args:
        seconds: By bytes.

    Returns:
        The latency a and the bandwidth B of 2 a + bytes / B, in seconds and bytes a second, with
        the smallest sum of squared relative errors.
    """
    import numpy as np

    sizes = np.array(list(seconds), np.float64)
    times = np.array(list(seconds.values()))
    rows = np.stack([2 / times, sizes / times], axis=1)
    (latency, inverse), *_ = np.linalg.lstsq(rows, np.ones(len(times)), rcond=None)
    return float(latency), float(1 / inverse)


# ---- the workers and what is between them ----------------------------------------------------


class Workers:
    """Two workers that do what they are asked to at the same time.

    Args:
        hosts: The address of each, and the words before its command.
    """

    def __init__(self, hosts: Sequence[tuple[str, list[str]]]):
        root = Path(__file__).resolve().parent.parent
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        addresses = [address for address, _ in hosts]
        self._processes = []
        for index, (_, prefix) in enumerate(hosts):
            task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
            self._processes.append(
                interleaved_timing.MeasuredProcess(
                    [*prefix, sys.executable, __file__, "WORKER", str(index)],
                    environment=os.environ | {"TF_CONFIG": json.dumps(task), "PYTHONPATH": path},
                )
            )
        self._threads = concurrent.futures.ThreadPoolExecutor(2)

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What the first worker answers."""
        asked = [self._threads.submit(each.ask, request) for each in self._processes]
        first, _ = (each.result() for each in asked)
        return dict(first)

    def close(self) -> None:
        """Ends both."""
        for each in self._processes:
            each.close()


@contextlib.contextmanager
def _hosts(link: str) -> Iterator[list[tuple[str, list[str]]]]:
    """The addresses of two workers, and the words before the command of each."""
    if link == "loopback":
        sockets = [socket.socket() for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
        for each in sockets:
            each.close()
        yield [(f"127.0.0.1:{port}", []) for port in ports]
        return
    names = [f"tfgpu{os.getpid()}{side}" for side in "ab"]
    try:
        for name in names:
            _ip("netns", "add", name)
        _ip("link", "add", "tfa", "netns", names[0], "type", "veth", "peer", "tfb")
        _ip("link", "set", "tfb", "netns", names[1])
        for number, (name, device) in enumerate(zip(names, ("tfa", "tfb"), strict=True), 1):
            _ip("-n", name, "addr", "add", f"10.255.77.{number}/24", "dev", device)
            _ip("-n", name, "link", "set", device, "up")
            _ip("-n", name, "link", "set", "lo", "up")
            shape = ["rate", f"{link}mbit", "burst", "256kb", "latency", "100ms"]
            in_name = ["ip", "netns", "exec", name]
            _run(*in_name, "tc", "qdisc", "add", "dev", device, "root", "tbf", *shape)
        yield [
            (f"10.255.77.{number}:2222", ["ip", "netns", "exec", name])
            for number, name in enumerate(names, 1)
        ]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise PermissionError(f"{words[0]} is not installed") from error
    if done.returncode:
        raise PermissionError(f"{' '.join(words)}: {done.stderr.strip()}")


# ---- in a worker -------------------------------------------------------------------------------


def work(core: int) -> None:
    """Answers requests until its standard input ends."""
    os.sched_setaffinity(0, {core})
    from tfgpu.cli import startup

    startup.prepare_environment()
    tf = startup.import_tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    made: dict[str, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        key = json.dumps(request)
        if key not in made:
            if "bytes" in request:
                made[key] = _vector(strategy, request["bytes"])
            else:
                made[key] = _training(strategy, request["model"], request["layout"])
        interleaved_timing.answer(made[key]())


def _vector(strategy: Any, size: int) -> Any:
    import tensorflow as tf

    times = 50 if size < 1 << 20 else 5

    @tf.function(autograph=False)
    def run(vector: Any) -> Any:
        def replica(vector: Any) -> Any:
            context = tf.distribute.get_replica_context()
            return context.all_reduce("SUM", 0.5 * vector)

        def body(count: Any, vector: Any) -> tuple[Any, Any]:
            return count + 1, strategy.run(replica, args=(vector,))

        return tf.while_loop(lambda count, _: count < times, body, (0, vector))[1][0]

    vector = tf.ones([size // 4])
    float(run(vector))

    def measure() -> dict[str, float]:
        start = time.perf_counter()
        float(run(vector))
        return {"seconds": (time.perf_counter() - start) / times}

    return measure


def _training(strategy: Any, name: str, layout: str) -> Any:
    """Times steps of a network; the layout "none" exchanges nothing."""
    import keras
    import numpy as np
    import tensorflow as tf

    import tfgpu
    from tfgpu.engine import all_reduce
    from tfgpu.engine.batches import Batches
    from tfgpu.engine.step_statistics import StepStatistics
    from tfgpu.models.lenet import lenet

    if layout == "none":
        strategy = tf.distribute.get_strategy()
    rows = BATCH * strategy.num_replicas_in_sync
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)
    labels = random.integers(0, 10, rows, dtype=np.int32)
    data = tf.data.Dataset.from_tensors((images, labels)).repeat()
    with strategy.scope():
        if name == "lenet":
            model = lenet(image_shape=(32, 32, 3), num_classes=10)
        else:
            inputs = keras.Input((32, 32, 3))
            x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(inputs)
            if name == "resnet50":
                x = keras.applications.ResNet50(
                    include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
                )(x)
            else:
                x = keras.layers.Flatten()(x)
                for units in (2048, 4096, 3072):
                    x = keras.layers.Dense(units, activation="relu")(x)
            model = tfgpu.Model(inputs, keras.layers.Dense(10)(x))
        model.compile(
            keras.optimizers.SGD(1e-3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            steps_per_execution=STEPS[name],
        )
    statistics = StepStatistics.of(model)
    sizes: list[int] = []
    buckets = all_reduce.buckets
    size = {"none": 4, "forward": 4, "one": 1 << 20}.get(layout) or int(layout)

    def noted(tensors: Sequence[Any]) -> list[list[int]]:
        found = buckets(tensors, bucket_bytes=size << 20)
        found = found[::-1] if layout == "forward" else found
        if len(tensors) > 4:  # The gradients, and not the metrics.
            sizes[:] = [sum(4 * tensors[i].shape.num_elements() for i in each) for each in found]
        return found

    all_reduce.buckets = noted  # type: ignore[assignment]
    try:
        model.fit(data, steps_per_epoch=STEPS[name], epochs=1, shuffle=False, verbose=0)
    finally:
        all_reduce.buckets = buckets
    execution, iterator = model.make_train_function(), iter(Batches(data, strategy))
    assert layout == "none" or sizes

    def measure() -> dict[str, Any]:
        before = [
            float(s) for s in (statistics.all_reduce_seconds, statistics.all_reduce_exposed_seconds)
        ]
        start = time.perf_counter()
        float(execution(iterator)["loss"])
        seconds = time.perf_counter() - start
        after = [
            float(s) for s in (statistics.all_reduce_seconds, statistics.all_reduce_exposed_seconds)
        ]
        under_way, exposed = ((b - a) / STEPS[name] for a, b in zip(before, after, strict=True))
        return {
            "seconds": seconds / STEPS[name],
            "buckets": sizes,
            "all_reduce": under_way,
            "exposed": exposed,
        }

    return measure


if __name__ == "__main__":
    if sys.argv[1:2] == ["WORKER"]:
        work(int(sys.argv[2]))
    else:
        main()

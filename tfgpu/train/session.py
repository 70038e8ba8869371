"""What all runs of a process share: devices, data, and the data in the devices' memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfgpu.cli.console import Stopwatch
from tfgpu.cluster.membership import Membership, alone
from tfgpu.data import identical
from tfgpu.data.examples import Examples
from tfgpu.data.inputs import make_resident
from tfgpu.machine import hardware, runtime
from tfgpu.tasks import loading
from tfgpu.tasks.loading import Dataset
from tfgpu.tasks.options import read_options, read_roles
from tfgpu.train.settings import TrainSettings

EVALUATION_BATCH = 512
"""Examples in a batch of evaluation, over all replicas; its size changes no result."""

RESIDENT_SHARE = 0.25
"""Of a device's free memory that resident data may take: activations need the rest."""


SMALL_STEP_PIXELS = 16 * 32 * 32
"""Pixels of a batch up to which a step of `lenet` is not worth sharing among threads."""


class Session:
    """What all runs of a process share: devices, data, and the data in the devices' memory.

    Attributes:
        machine: Devices and strategy.
        data: The splits.
        members: The processes that train together.
    """

    def __init__(
        self,
        machine: runtime.Runtime,
        data: Dataset,
        members: Membership | None = None,
    ):
        self.machine = machine
        self.data = data
        self.members = members or alone()
        self._resident: dict[int, tuple[Any, ...]] = {}
        self._digests: dict[int, np.ndarray] = {}

    @classmethod
    def open(
        cls, config: TrainSettings, *, stopwatch: Stopwatch, members: Membership | None = None
    ) -> Session:
        """Finds the devices and the data; once a process.

        Args:
            config: The settings of the first run.
            stopwatch: Is switched to "data".
            members: The processes that train together; None for one by itself.

        Raises:
            tfgpu.errors.Error: The request or the data is at fault.
        """
        machine = runtime.start(
            strategy=config.strategy,
            devices=config.devices,
            virtual_devices=config.virtual_devices,
            precision=config.precision,
            jit_compile=config.jit_compile,
            seed=config.seed,
            deterministic=config.deterministic,
            intra_op_threads=config.intra_op_threads,
            small_steps=has_small_steps(config),
            processes=members.sharing_cores if members else 1,
        )
        stopwatch.switch("data")
        return cls(machine, load_data(config), members)

    def another(self, config: TrainSettings) -> Session:
        """The same session made ready for another run, as if that were the first.

        Args:
            config: Its settings; those of the devices, the threads and the data are the first
                run's.
        """
        session = Session(
            runtime.again(
                self.machine,
                precision=config.precision,
                jit_compile=config.jit_compile,
                seed=config.seed,
            ),
            self.data,
            self.members,
        )
        session._resident, session._digests = self._resident, self._digests
        return session

    def resident(self, examples: Examples) -> tuple[Any, ...]:
        """A split in the memory of each device, read when it is first asked for.

        Raises:
            DataError: An image or a record is damaged.
        """
        if id(examples) not in self._resident:
            arrays = examples.load_arrays()
            if self.data.task.counts_identical:
                self._digests[id(examples)] = identical.digests(arrays[0])
            self._resident[id(examples)] = make_resident(
                examples, self.machine.strategy, arrays=arrays
            )
        return self._resident[id(examples)]

    def identical_inputs(self, examples: Examples) -> int | None:
        """How many inputs of a split are also among those to train on.

        Args:
            examples: The validation or the test split, which is read for it where it is not
                resident.

        Returns:
            The number; None where nobody has counted: there is too much to read for this alone, or
            it would say nothing of the task.

        Raises:
            DataError: A record is damaged.
        """
        if not self.data.task.counts_identical:
            return None
        parts = (examples, self.data.train)
        unread = [part for part in parts if id(part) not in self._digests]
        if sum(part.nbytes for part in unread) > identical.MOST_BYTES:
            return None
        for part in unread:
            self._digests[id(part)] = identical.read_digests(part)
        return identical.count(*(self._digests[id(part)] for part in parts))

    def choose_input(self, asked: str, *, test: bool) -> tuple[str, str]:
        """Decides `--input=auto`.

        Args:
            asked: The setting.
            test: Whether the test split is read too.

        Returns:
            "resident" or "streaming", and the reason.
        """
        if asked != "auto":
            return asked, ""
        data = self.data
        splits = [data.train, *([data.test] if test else [])]
        splits += [data.validation] if data.validation else []
        if all(id(split) in self._resident for split in splits):
            return "resident", "the data are there already"
        # Of virtual devices that share a memory, each has its part of it free.
        free = hardware.free_memory(self.machine.devices[0])
        needed = sum(split.nbytes for split in splits)
        fits = needed <= RESIDENT_SHARE * free
        reason = (
            f"{needed / 1e6:,.0f} MB of data, {'under' if fits else 'over'} a quarter of "
            f"{free / 1e9:,.1f} GB free"
        )
        return "resident" if fits else "streaming", reason

    def evaluation_batch(self, examples: Examples, *, batch_size: int) -> int:
        """A batch for evaluation: a multiple of the replicas, no larger than it is of use.

        Args:
            examples: The split.
            batch_size: That of training, over all replicas.
        """
        # Without a backward pass four times the batch fits where a step of training does.
        most = min(EVALUATION_BATCH, 4 * batch_size, examples.num_examples)
        replicas = self.machine.num_replicas
        return -(-most // replicas) * replicas


def load_data(config: TrainSettings) -> Dataset:
    """Opens the data set that settings ask for, and splits it.

    Raises:
        tfgpu.errors.Error: What `loading.load` refuses.
    """
    settings = config.to_json()
    return loading.load(
        config.dataset,
        data_dir=config.data_dir,
        validation_fraction=config.validation_fraction,
        image_size=config.image_size,
        seed=config.seed,
        task=config.task,
        features=read_roles(config.features, config.target),
        options=lambda task: read_options(settings, task.options, task=task.name),
    )


def data_identity(data: Dataset) -> dict[str, Any]:
    """What a checkpoint or a search keeps of the data, to be compared when it is continued."""
    identity: dict[str, Any] = {
        "data.fingerprint": data.fingerprint,
        "data.classes": len(data.class_names),
    }
    if data.spec.fitted:
        identity["data.fitted"] = data.spec.fitted_digest
    return identity


_OTHER_MODELS = ("csv", "parquet", "npz", "coco")  # Readers of data whose default is not lenet.


def has_small_steps(config: TrainSettings) -> bool:
    """Whether threads that shared an operation of a training step would cost more than they save.

    Measured with `lenet` on 32x32 images and two cores: one thread an operation trains 1.9 times
    as fast at 4 images a step, as fast at 32, and 0.7 times as fast at 128. A model of the user's
    is not known before it is built, which is too late.

    Args:
        config: As the user gave it.
    """
    height, width = config.image_size or (32, 32)
    return (
        config.dataset.partition(":")[0] not in _OTHER_MODELS
        and config.model in (None, "lenet")
        and config.task in (None, "classification")
        and (config.width or 1) <= 1
        and config.batch_size is not None
        and config.batch_size * height * width <= SMALL_STEP_PIXELS
    )

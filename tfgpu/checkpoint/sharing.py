"""A checkpoint on several machines: the chief alone keeps it, and hands it to the others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tfgpu.checkpoint.format import CHUNK, Checkpoint, dtype_of
from tfgpu.cluster.membership import Membership
from tfgpu.errors import ModelFileError


def share(members: Membership, checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Gives every process the checkpoint that the chief has.

    Args:
        members: The processes that train together.
        checkpoint: The chief's; None where there is none, and in the other processes.

    Returns:
        The chief's, in every process.
    """
    if members.alone:
        return checkpoint
    head = None
    if checkpoint is not None:
        head = {
            "path": str(checkpoint.path),
            "step": checkpoint.step,
            "state": checkpoint.state,
            "arrays": [
                (name, array.dtype.name, array.shape) for name, array in checkpoint.arrays.items()
            ],
        }
    head = members.broadcast("the checkpoint", head).fields["value"]
    if head is None:
        return None
    arrays = {}
    for name, dtype, shape in head["arrays"]:
        if checkpoint is not None:
            array = np.asarray(checkpoint.arrays[name], order="C")
        else:
            array = np.empty(tuple(shape), dtype_of(dtype))
        data = array.reshape(-1).view(np.uint8)
        for start in range(0, len(data), CHUNK):
            piece = data[start : start + CHUNK]
            body = piece.tobytes() if checkpoint is not None else b""
            received = members.broadcast("a part of the checkpoint", None, body).body
            if checkpoint is None:
                piece[:] = np.frombuffer(received, np.uint8)
        arrays[name] = array
    path = Path(head["path"])
    return Checkpoint(path=path, step=head["step"], arrays=arrays, state=head["state"])


def check_equal(members: Membership, arrays: Mapping[str, np.ndarray]) -> None:
    """Compares a digest of the state that training starts from.

    Args:
        members: The processes that train together.
        arrays: The state by name, but for what each process has of its own.

    Raises:
        ModelFileError: The processes do not start from the same state.
    """
    if members.alone:
        return
    digest = hashlib.sha256()
    for name, array in arrays.items():
        data = np.asarray(array, order="C")
        digest.update(f"{name} {data.dtype.name} {data.shape}\0".encode())
        digest.update(data.reshape(-1).view(np.uint8).data)
    found = members.exchange("the digest of the state", digest.hexdigest())
    for rank, other in enumerate(found):
        if other != found[0]:
            raise ModelFileError(
                f"{members.name(rank)} does not start from the state of {members.name(0)} (SHA-256 "
                f"{other[:12]} and {found[0][:12]}); start all of them again"
            )


def add_metrics_of_others(
    members: Membership, own: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray] | None:
    """Gives the chief the metrics of all replicas: each process sums up its own rows alone.

    Args:
        members: The processes that train together.
        own: Arrays of this process's replicas, by name.

    Returns:
        Those of all, at the chief; None elsewhere.
    """
    index = [(name, array.dtype.name, array.shape) for name, array in own.items()]
    body = b"".join(np.asarray(array, order="C").tobytes() for array in own.values())
    gathered = members.gather("metrics", index, body)
    if gathered is None:
        return None
    arrays = dict(own)
    for message in gathered[1:]:
        start = 0
        for name, dtype, shape in message.fields["value"]:
            kind = dtype_of(dtype)
            size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
            piece = np.frombuffer(message.body[start : start + size], kind)
            arrays[name] = piece.reshape(tuple(shape))
            start += size
    return arrays

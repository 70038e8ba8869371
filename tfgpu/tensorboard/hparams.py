"""The settings of a training for TensorBoard's HParams tab."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf


def begin(writer: Any, hparams: Mapping[str, Any]) -> None:
    """Writes the settings; what is None is left out, and what is no number or text as text."""
    # Not at the top: importing it takes seconds.
    from tensorboard.plugins.hparams import api

    plain = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in hparams.items()
        if value is not None
    }
    with writer.as_default():
        api.hparams(plain)


def end(writer: Any) -> None:
    """Writes that the training has ended."""
    from tensorboard.plugins.hparams import api_pb2, summary

    ended = summary.session_end_pb(api_pb2.STATUS_SUCCESS)
    with writer.as_default():
        tf.summary.experimental.write_raw_pb(ended.SerializeToString(), step=0)

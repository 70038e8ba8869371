"""The model that is exported, in float32 whatever it was trained in."""

from __future__ import annotations

from typing import Any

import keras


def in_float32(model: keras.Model) -> keras.Model:
    """The same model with the same weights, every layer under the policy float32.

    Under mixed_float16 a file for ONNX differs by 1e-3 from the model, and LiteRT has no kernels
    for it. The variables are float32 under the mixed policies already.

    Args:
        model: Of any policy.

    Returns:
        The model itself when it is in float32 throughout.
    """
    config = keras.saving.serialize_keras_object(model)
    plain = _with_float32(config)
    if plain == config:
        return model
    rebuilt: keras.Model = keras.saving.deserialize_keras_object(plain, safe_mode=True)
    rebuilt.set_weights(model.get_weights())
    return rebuilt


def _with_float32(config: Any) -> Any:
    """A serialized Keras object with float32 in the place of every mixed policy."""
    if isinstance(config, dict):
        if config.get("class_name") == "DTypePolicy" and config.get("module") == "keras":
            return config | {"config": {"name": "float32"}}
        return {key: _with_float32(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(map(_with_float32, config))
    return "float32" if config in ("mixed_float16", "mixed_bfloat16") else config

"""Models of sound: samples, or frames of ready features, in; logits over classes out.

Both come padded at the end, with `length` beside, how many are real. Padding changes no output:
what lies behind the length is set to zero before each layer that looks at neighbours, and no layer
takes statistics over time. `spectrogram` is part of the model, so that an exported file takes
samples.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import keras
import numpy as np

import tfgpu

ops, layers = keras.ops, keras.layers

CONVOLUTION_UNITS, CONVOLUTION_BLOCKS, KERNEL = 64, 3, 5
RECURRENT_UNITS, RECURRENT_LAYERS = 64, 1
FULL_SCALE = 2.0**15
"""Of 16-bit samples: what 1 is in floats."""
FLOOR = 1e-8
"""Added to a power before its logarithm: -80 dB of full scale, above the rounding of float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrogram:
    """A log-mel spectrogram of samples at one rate.

    Attributes:
        rate: Samples a second.
        frame: Samples of a frame.
        hop: Samples from one frame to the next.
        mels: Bands.
        low: The lower edge of the first band, in Hz.
        high: The upper edge of the last band, in Hz.
    """

    rate: int
    frame: int
    hop: int
    mels: int
    low: float
    high: float

    @property
    def fft_length(self) -> int:
        """Points of the transform: the next power of two."""
        return 2 ** math.ceil(math.log2(self.frame))

    def frames(self, samples: Any) -> Any:
        """How many whole frames so many samples have, at least one.

        Args:
            samples: An integer, or an array of integers.
        """
        return (samples - self.frame) // self.hop * (samples >= self.frame) + 1

    def of(self, samples: np.ndarray) -> np.ndarray:
        """The spectrogram of samples by the fast Fourier transform, on the host.

        Args:
            samples: (n,) in [-1, 1], one frame or more.

        Returns:
            float32 (frames, mels), the same as `log_mel`.
        """
        window = (1 - np.cos(2 * np.pi * np.arange(self.frame) / self.frame)) / 2
        every = np.lib.stride_tricks.sliding_window_view(samples, self.frame)[:: self.hop]
        waves = np.fft.rfft(every * window / window.sum(), self.fft_length)
        power: np.ndarray = np.abs(waves) ** 2 @ self.mel_weights()
        return np.log(power + FLOOR).astype(np.float32)

    def mel_weights(self) -> np.ndarray:
        """Triangles of equal width on the mel scale, from the bins of the transform to the bands.

        mel(f) = 2595 log10(1 + f / 700): O'Shaughnessy, "Speech Communication", 1987, as in HTK
        (Young et al., "The HTK Book", section 5.6, where the triangles are defined).

        Returns:
            float32 (fft_length // 2 + 1, mels).
        """

        def mel(frequency: Any) -> Any:
            return 2595 * np.log10(1 + np.asarray(frequency) / 700)

        bins = mel(np.arange(self.fft_length // 2 + 1) * self.rate / self.fft_length)
        edges = np.linspace(mel(self.low), mel(self.high), self.mels + 2)
        rising = (bins[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - bins[:, None]) / (edges[2:] - edges[1:-1])
        return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)

    def basis(self, bins: np.ndarray) -> np.ndarray:
        """The discrete Fourier transform of a windowed frame, as a product with these vectors.

        X[k] = sum over n of w[n] x[n] exp(-2 pi i k n / fft_length), with the periodic Hann window
        w[n] = (1 - cos(2 pi n / frame)) / 2. Divided by the sum of the window, so that a sine of
        full scale has the power 1/4 in its bin whatever the frame.

        Args:
            bins: The k wanted.

        Returns:
            float32 (frame, 2 * bins): cosines, then sines.
        """
        n = np.arange(self.frame)
        window = (1 - np.cos(2 * np.pi * n / self.frame)) / 2
        # The product taken modulo the length, which keeps the angle exact.
        angle = 2 * np.pi * (n[:, None] * bins % self.fft_length) / self.fft_length
        waves = np.concatenate([np.cos(angle), -np.sin(angle)], axis=1)
        return (window[:, None] * waves / window.sum()).astype(np.float32)


def log_mel(samples: keras.KerasTensor, spectrogram: Spectrogram) -> keras.KerasTensor:
    """Samples to the logarithm of their power in mel bands, by a convolution.

    A convolution with the basis of the Fourier transform is exact, and the one form that XLA, ONNX
    and LiteRT all have. In float32, whatever the precision of the run.

    Args:
        samples: float32 (batch, samples), in [-1, 1].
        spectrogram: Which.

    Returns:
        float32 (batch, frames, mels).
    """
    weights = spectrogram.mel_weights()
    bins = np.flatnonzero(weights.any(axis=1))
    basis = spectrogram.basis(bins)

    def fixed(values: np.ndarray) -> keras.initializers.Initializer:
        return keras.initializers.Constant(values)

    missing = spectrogram.frame - samples.shape[1]
    if missing > 0:
        samples = ops.pad(samples, ((0, 0), (0, missing)))
    waves = layers.Conv1D(
        basis.shape[1],
        spectrogram.frame,
        strides=spectrogram.hop,
        use_bias=False,
        trainable=False,
        dtype="float32",
        name="fourier",
    )
    waves.build((None, None, 1))
    waves.set_weights([basis[:, None, :]])
    bands = layers.Dense(
        spectrogram.mels, use_bias=False, trainable=False, dtype="float32", name="mel"
    )
    # Real and imaginary parts squared and summed, in the same product.
    bands.build((None, None, basis.shape[1]))
    bands.set_weights([np.concatenate([weights[bins]] * 2)])
    power = bands(ops.square(waves(ops.expand_dims(samples, -1))))
    return ops.log(power + FLOOR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """What the models take, and how it becomes frames that are alike in size.

    Attributes:
        length: Samples, or frames of ready features.
        features: Of a frame; 0 where samples are taken.
        spectrogram: Of samples.
        mean: Of ready features, over the frames of the training split.
        deviation: The same.
    """

    length: int
    features: int = 0
    spectrogram: Spectrogram | None = None
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()

    @property
    def scale(self) -> np.ndarray:
        """What each ready feature is divided by: its deviation, or 1 where it is constant."""
        deviation = np.asarray(self.deviation, np.float64)
        least = 1e-6 * np.maximum(np.abs(np.asarray(self.mean, np.float64)), 1e-6)
        return np.where(deviation > least, deviation, 1.0)

    def frames(self) -> tuple[dict[str, keras.KerasTensor], keras.KerasTensor, keras.KerasTensor]:
        """Inputs by name, frames (batch, time, features), and which are real, (batch, time).

        Ready features are standardised by the training split. Of a spectrogram the mean over all
        real frames and bands is taken away, and it is divided by their deviation: how loud a
        recording is says nothing of its class.
        """
        length = keras.Input((), dtype="int32", name="length")
        if self.spectrogram is None:
            values = keras.Input((self.length, self.features), dtype="float32", name="features")
            real = _real(length, self.length)
            x = layers.Rescaling(
                (1 / self.scale).tolist(),
                offset=(-np.asarray(self.mean) / self.scale).tolist(),
                dtype="float32",
                name="standardize",
            )(values)
            return {"features": values, "length": length}, x, real
        samples = keras.Input((self.length,), dtype="int16", name="samples")
        floats = ops.cast(samples, "float32") * (1 / FULL_SCALE)
        # A recording shorter than a frame has one all the same, part of which is padding.
        floats = floats * ops.cast(_real(length, self.length), "float32")
        x = log_mel(floats, self.spectrogram)
        # As `Spectrogram.frames`, of a tensor.
        whole = ops.maximum(length - self.spectrogram.frame, 0) // self.spectrogram.hop + 1
        real = _real(whole, x.shape[1])
        there = ops.expand_dims(ops.cast(real, "float32"), -1)
        count = ops.sum(there, axis=(1, 2), keepdims=True) * self.spectrogram.mels
        mean = ops.sum(x * there, axis=(1, 2), keepdims=True) / count
        centred = (x - mean) * there
        variance = ops.sum(ops.square(centred), axis=(1, 2), keepdims=True) / count
        x = centred * ops.rsqrt(variance + 1e-3)
        return {"samples": samples, "length": length}, x, real


def _real(length: keras.KerasTensor, frames: int) -> keras.KerasTensor:
    """Which of the frames are real: bool (batch, frames)."""
    return ops.less(np.arange(frames, dtype=np.int32)[None, :], ops.expand_dims(length, 1))


def convolution(
    *, input: Input, num_classes: int, width: float = 1.0, depth: int = CONVOLUTION_BLOCKS
) -> tfgpu.Model:
    """Residual convolutions over time, and mean and maximum over the recording.

    Source: Choi et al., "Temporal Convolution for Real-time Keyword Spotting on Mobile Devices",
    Interspeech 2019: the bands are the channels of the first convolution. With layer normalisation
    over the channels of a frame in place of their batch normalisation. Of a spectrogram the first
    convolution makes one frame of two; ready features keep their frames.

    Args:
        input: What is taken.
        num_classes: Classes.
        width: Multiplies the channels, 64.
        depth: Residual blocks of two convolutions.

    Returns:
        A model from `samples` or `features`, and `length`, to float32 logits (batch, num_classes).

    Raises:
        ValueError: `width` or `depth` is not positive.
    """
    _check("convolution", width, depth)
    units = max(8, round(CONVOLUTION_UNITS * width / 8) * 8)
    inputs, x, real = input.frames()
    there = ops.expand_dims(real, -1)

    def conv(x: Any, name: str, strides: int = 1) -> Any:
        # Or padding would reach into the last frames.
        x = x * ops.cast(there, x.dtype)
        # Not "same", which begins elsewhere for an even number of frames than for an odd one.
        x = ops.pad(x, ((0, 0), (KERNEL // 2, KERNEL // 2), (0, 0)))
        return layers.Conv1D(units, KERNEL, strides=strides, use_bias=False, name=name)(x)

    def norm(x: Any, name: str) -> Any:
        return layers.LayerNormalization(name=name)(x)

    strides = 1 if input.spectrogram is None else 2
    x = conv(x, "stem", strides)
    there = there[:, ::strides]
    for number in range(1, depth + 1):
        y = layers.Activation("relu")(norm(x, f"block{number}_norm1"))
        y = conv(y, f"block{number}_conv1")
        y = layers.Activation("relu")(norm(y, f"block{number}_norm2"))
        x = x + conv(y, f"block{number}_conv2")
    x = layers.Activation("relu")(norm(x, "norm"))
    return _classifier(inputs, x, there, num_classes, name="convolution")


def recurrent(
    *, input: Input, num_classes: int, width: float = 1.0, depth: int = RECURRENT_LAYERS
) -> tfgpu.Model:
    """Gated recurrent units in both directions, and mean and maximum over the recording.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical
    Machine Translation", EMNLP 2014; Schuster and Paliwal, "Bidirectional Recurrent Neural
    Networks", IEEE Transactions on Signal Processing 1997.

    Args:
        input: What is taken.
        num_classes: Classes.
        width: Multiplies the units of each direction, 64.
        depth: Layers.

    Returns:
        A model from `samples` or `features`, and `length`, to float32 logits (batch, num_classes).

    Raises:
        ValueError: `width` or `depth` is not positive.
    """
    _check("recurrent", width, depth)
    units = max(8, round(RECURRENT_UNITS * width / 8) * 8)
    inputs, x, real = input.frames()
    for number in range(1, depth + 1):
        # The mask: the direction that comes from the end begins with the last real frame. Not
        # cuDNN's kernel, which XLA does not compile; not `Bidirectional`, which reverses the mask
        # of its outputs where it is unrolled (Keras 3.15).
        both = [
            layers.GRU(
                units,
                return_sequences=True,
                go_backwards=backwards,
                use_cudnn=False,
                name=f"{'backward' if backwards else 'forward'}{number}",
            )(x, mask=real)
            for backwards in (False, True)
        ]
        x = ops.concatenate([both[0], ops.flip(both[1], axis=1)], axis=-1)
        x = layers.LayerNormalization(name=f"norm{number}")(x)
    return _classifier(inputs, x, ops.expand_dims(real, -1), num_classes, name="recurrent")


def _check(name: str, width: float, depth: int) -> None:
    if width <= 0 or depth < 1:
        raise ValueError(f"{name} needs a width above 0 and a depth of 1 or more: {width}, {depth}")


def _classifier(
    inputs: dict[str, keras.KerasTensor],
    x: keras.KerasTensor,
    there: keras.KerasTensor,
    num_classes: int,
    *,
    name: str,
) -> tfgpu.Model:
    """Logits of the mean and the maximum over the real frames."""
    x = ops.cast(x, "float32")
    floats = ops.cast(there, "float32")
    mean = ops.sum(x * floats, axis=1) / ops.maximum(ops.sum(floats, axis=1), 1.0)
    # Where padding is, far below what a normalised frame can be.
    most = ops.max(x * floats - (1 - floats) * 1e4, axis=1)
    x = ops.concatenate([mean, most], axis=-1)
    # Softmax and its gradient lose too much in 16 bits.
    return tfgpu.Model(
        inputs, layers.Dense(num_classes, dtype="float32", name="logits")(x), name=name
    )

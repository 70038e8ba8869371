"""Generated recordings: the class is the pitch of a tone among noise."""

import struct

import numpy as np

PITCHES = {"high": 1400.0, "low": 500.0}


def tone(random, pitch, *, rate=4000, seconds=0.4):
    """int16 samples of a tone of any phase, with noise and of any loudness."""
    time = np.arange(round(rate * seconds)) / rate
    loud = random.uniform(2000, 9000)
    wave = np.sin(2 * np.pi * (pitch * time + random.uniform()))
    return np.round(loud * (wave + random.normal(0, 0.2, len(time)))).astype(np.int16)


def wav(samples, *, rate=4000, channels=1, tag=1, bits=16, declared=None, extra=b""):
    """The bytes of a WAV file; `samples` are its bytes, or an array."""
    content = samples if isinstance(samples, bytes) else samples.tobytes()
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits)
    size = len(content) if declared is None else declared
    chunks = b"fmt " + struct.pack("<I", len(form)) + form + extra
    chunks += b"data" + struct.pack("<I", size) + content
    return b"RIFF" + struct.pack("<I", len(chunks) + 4) + b"WAVE" + chunks


def write(root, count, *, seed=0, **settings):
    """Writes `count` WAV files a class, of different lengths; returns the folder."""
    random = np.random.RandomState(seed)
    for name, pitch in PITCHES.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            samples = tone(random, pitch, seconds=random.uniform(0.2, 0.4), **settings)
            (root / name / f"{i:02d}.wav").write_bytes(wav(samples, **settings))
    return root


def features(count, *, seed=0, size=5):
    """Frames of features one after another, their lengths, and labels 3 and 8."""
    random = np.random.RandomState(seed)
    lengths, labels = random.randint(4, 12, count), np.resize([3, 8], count)
    rows = [
        random.normal(50 * (label == 8), 30, (length, size)) + 100
        for length, label in zip(lengths, labels, strict=True)
    ]
    return {"X": np.concatenate(rows).astype(np.float32), "lengths": lengths, "y": labels}

"""`digits`: real handwritten digits as a TFDS set that needs no network.

The images are those that scikit-learn carries: the test part of the UCI set "Optical Recognition
of Handwritten Digits", 1,797 digits of 8x8 values 0..16.
"""

import errno
import hashlib
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from tfgpu.data import preparation, tfds_source
from tfgpu.data.records import Source
from tfgpu.data.tfds_import import tfds
from tfgpu.errors import DataError
from tfgpu.machine import user_cache

_NUM_TEST = 360

# What is wrong with one directory and need not be with the next.
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EEXIST, errno.ENOTDIR)

_CITATION = """@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49}
}"""

_logger = logging.getLogger(__name__)


# skip_registration: it is opened by its class, and TFDS may one day have a `digits` of its own.
class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Builder of the set; `tfgpu.tasks.loading.load("digits", ...)` is the way in."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "1,437 images to train and 360 to test, 32x32x3."}

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "1,797 handwritten digits of 8x8 values 0..16, brought to 32x32 bilinearly "
                "(half-pixel centres, edges repeated), scaled to 0..255 and repeated to 3 "
                "channels. The 360 test images are stratified by digit: those of each digit "
                "whose pixels have the lowest SHA-256."
            ),
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(32, 32, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            citation=_CITATION,
            license="CC BY 4.0",
            # The order of the file, whatever hash TFDS would shuffle it by.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # Nothing is downloaded.
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        pixels = pixels.reshape(-1, 8, 8).astype(np.uint8)
        labels = labels.astype(np.int64)
        in_test = choose_test(pixels, labels)
        return {
            "train": self._generate_examples(pixels[~in_test], labels[~in_test]),
            "test": self._generate_examples(pixels[in_test], labels[in_test]),
        }

    def _generate_examples(
        self, pixels: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, (image, label) in enumerate(zip(enlarge(pixels), labels, strict=True)):
            yield key, {"image": image, "label": int(label)}


def build(data_dir: str) -> Digits:
    """Prepares the set below a directory; returns its builder."""
    builder = Digits(data_dir=data_dir)
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(
            try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP
        )
    )
    return builder


def choose_test(pixels: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Chooses the test images by what they show, so that no library's version matters.

    Each digit gives its share of the test images (largest remainders), and of each digit those
    whose pixels have the lowest SHA-256.

    Args:
        pixels: uint8 [n, 8, 8].
        labels: int64 [n].

    Returns:
        bool [n], true for the images of the test split.
    """
    counts = np.bincount(labels)
    shares = counts * _NUM_TEST
    quotas = shares // len(labels)
    largest = np.argsort(-(shares % len(labels)), kind="stable")
    quotas[largest[: _NUM_TEST - quotas.sum()]] += 1
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in pixels]
    in_test = np.zeros(len(labels), bool)
    for label, quota in enumerate(quotas):
        of_label = sorted(np.flatnonzero(labels == label), key=lambda i: (digests[i], i))
        in_test[of_label[:quota]] = True
    return in_test


def enlarge(pixels: np.ndarray) -> np.ndarray:
    """Brings the digits to 32x32x3, in whole numbers so that every machine agrees.

    Args:
        pixels: uint8 [n, 8, 8], values 0..16.

    Returns:
        uint8 [n, 32, 32, 3], values 0..255, bilinear with half-pixel centres.
    """
    # Row i of the result has its centre at (i + 0.5) / 4 - 0.5 of the original: in eighths,
    # 2 i - 3, so all weights are whole eighths.
    weights = np.zeros((32, 8), np.int64)
    for row in range(32):
        whole, eighths = divmod(2 * row - 3, 8)
        weights[row, max(whole, 0)] += 8 - eighths
        weights[row, min(whole + 1, 7)] += eighths
    values = weights @ pixels.astype(np.int64) @ weights.T  # In 64ths of 0..16.
    grey = (values * 255 + 512) // 1024  # 64 * 16 = 1024, rounded half up.
    return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=-1)


def open_digits(*, data_dir: str | None) -> Source:
    """Opens the set, and prepares it first where it is not yet.

    Args:
        data_dir: Where prepared sets lie. Where that cannot be written, the set is prepared in the
            user's cache directory instead.

    Raises:
        DataError: It can be prepared nowhere, or is damaged.
    """
    return tfds_source.open_directory(prepare(data_dir=data_dir), requested="digits")


def prepare(*, data_dir: str | None) -> str:
    """Returns the directory of the prepared set, which it makes where there is none.

    Several processes may do this at once: each prepares beside the place and renames; the first
    wins, the others use what it made.

    Args:
        data_dir: See `open_digits`.

    Raises:
        DataError: No directory can be written.
    """
    places = [tfds_source.default_data_dir(data_dir), *_fallback_dirs()]
    for place in places:
        final = os.path.join(place, Digits.name, str(Digits.VERSION))
        # The file that is written last.
        if os.path.exists(os.path.join(final, "dataset_info.json")):
            return final
    if (aside := preparation.instead()) is not None:
        places = [aside]
    reasons = []
    for place in places:
        try:
            prepared = _prepare_in(place)
        except OSError as error:
            if error.errno not in _UNUSABLE:
                raise DataError(f"digits cannot be prepared in {place}: {error}") from None
            reasons.append(f"{place} ({error.strerror or error})")
            continue
        if reasons:
            _logger.info("digits is prepared in %s instead of %s", place, ", ".join(reasons))
        return prepared
    raise DataError(
        f"digits cannot be prepared: cannot write {', '.join(reasons)}; name a directory that can "
        "be written with --data_dir"
    )


def _fallback_dirs() -> list[str]:
    cache = user_cache.directory()
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    return [
        *([] if cache is None else [str(cache / "datasets")]),
        os.path.join(tempfile.gettempdir(), f"tfgpu-{user}", "datasets"),
    ]


def _prepare_in(place: str) -> str:
    """Prepares the set below `place`; raises OSError where that cannot be written."""
    final = pathlib.Path(place, Digits.name, str(Digits.VERSION))
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".digits-", dir=place, ignore_cleanup_errors=True
    ) as temporary:
        with tfds_source.quiet():
            made = build(temporary).data_path
        try:
            os.rename(made, final)
        except OSError:
            # Another process was first, with the same content.
            if not (final / "dataset_info.json").exists():
                raise
    return str(final)

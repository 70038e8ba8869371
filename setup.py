"""Metadata and dependencies of tfgpu. Settings of the tools live in pyproject.toml.

A lower bound is the oldest version that was installed with the other lower
bounds and ran the tests (BUILD.md says when and on what). TensorFlow and Keras
have upper bounds too, so that pip chooses versions that were tried: `tfgpu.Model`
overrides how Keras' trainer runs one execution, and those methods are not part
of Keras' stable interface. A newer one that is there anyway is warned about, and
works where all that tfgpu needs of it is found.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

TENSORFLOW_BOUND = ">=2.19,<2.22"

INSTALL_REQUIRES = [
    f"tensorflow{TENSORFLOW_BOUND}",
    "keras>=3.10,<3.16",
    "tensorflow-datasets>=4.9.10",
    # That of tensorflow-datasets; 1.18 and newer do not work beside TensorFlow 2.19, though pip
    # installs them.
    "tensorflow-metadata>=1.17.3",
    # tensorflow-datasets 4.9.10 imports it and declares it for Python < 3.9 alone.
    "importlib_resources>=6.4.0",
    # TensorFlow 2.21 no longer depends on it, and tf.summary raises without it.
    "tensorboard>=2.19.0",
    "absl-py>=2.1.0",
    # The checksums of TFRecord files.
    "google-crc32c>=1.7.1",
    # The weights in files of other runs.
    "h5py>=3.11.0",
    # The page of `tfgpu report`.
    "jinja2>=3.1.6",
    # bfloat16 in checkpoints.
    "ml_dtypes>=0.6.0",
    "numpy>=2.0.2",
    "pillow>=11.3.0",
    "rich>=13.7.0",
    # The images of the `digits` data set.
    "scikit-learn>=1.5.0",
    # Resamples recordings; scikit-learn needs it too.
    "scipy>=1.13.1",
]

PLOTS = ["matplotlib>=3.11.0"]

EXPORT = [
    "ai-edge-litert>=2.3.0",
    "onnx>=1.23.2",
    "onnxruntime>=1.32.0",
    "tf2onnx>=1.17.0",
]

TUNE = [
    # tfgpu.tune overrides parts of its oracles that are not its stable interface.
    "keras-tuner>=1.4.8,<1.5",
    "grpcio>=1.71.0",
    # Its BayesianOptimization needs both, undeclared.
    "scikit-learn>=1.5.0",
    "scipy>=1.13.1",
]

HEIC = ["pillow-heif>=1.8.1"]

RECOMMENDATION = ["keras-rs>=0.4.0"]

DETECTION = ["pycocotools>=2.0.11"]

PARQUET = ["pyarrow>=17.0.0"]

HARDWARE = ["nvidia-ml-py>=13.590.48", "psutil>=7.0.0"]

KUBERNETES = ["PyYAML>=6.0.4"]

RAY = ["ray>=2.60.0"]

MLFLOW = ["mlflow>=3.17.2"]

WANDB = ["wandb>=0.31.0"]

DOCS = ["mkdocs>=1.6.1", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"]

# The tests draw every picture, write every format, search and launch. selenium: TensorBoard in a
# real browser, where there is one. Those of export cannot be installed beside TensorFlow 2.19.
TEST_BUT_EXPORT = [
    "pytest>=8.2.0",
    "pytest-xdist>=3.7.0",
    "selenium>=4.30.0",
    # The notebook, run from top to bottom.
    "ipykernel>=6.29.5",
    "nbclient>=0.10.2",
    *PLOTS,
    *HARDWARE,
    *TUNE,
    *RECOMMENDATION,
    *DETECTION,
    *PARQUET,
    *HEIC,
    *KUBERNETES,
    *RAY,
]

TEST = [*TEST_BUT_EXPORT, *EXPORT]

EXTRAS_REQUIRE = {
    "cuda": [f"tensorflow[and-cuda]{TENSORFLOW_BOUND}"],
    # `tfgpu tune`.
    "tune": TUNE,
    # The pictures of `tfgpu bench` and `tfgpu evaluate`.
    "plots": PLOTS,
    # What writes the files of `tfgpu export`, and the runtimes they are compared in.
    "export": EXPORT,
    # The photographs of telephones (HEIC) in folders of images.
    "heic": HEIC,
    # `--model=ranking`, of recommendation.
    "recommendation": RECOMMENDATION,
    # `tfgpu evaluate` of detections.
    "detection": DETECTION,
    # `--dataset=parquet:FILE`.
    "parquet": PARQUET,
    # The manifest of `tfgpu launch --backend=kubernetes`.
    "kubernetes": KUBERNETES,
    # `tfgpu launch --backend=ray`.
    "ray": RAY,
    # How a run uses GPUs, processor and memory.
    "hardware": HARDWARE,
    # `--log_to=mlflow`, and a store in a file.
    "mlflow": MLFLOW,
    # `--log_to=wandb`.
    "wandb": WANDB,
    # TensorBoard's Profile tab.
    "profile": ["xprof>=2.20.0"],
    # The site.
    "docs": DOCS,
    "test": TEST,
    # The same beside TensorFlow 2.19, without tests/export.
    "test-oldest": TEST_BUT_EXPORT,
    "dev": [*TEST, *DOCS, "import-linter>=2.13", "mypy>=2.4", "pre-commit>=4.0", "ruff>=0.17"],
}


def read_version() -> str:
    """Returns the version in tfgpu/__init__.py, without importing the package."""
    text = (HERE / "tfgpu" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__(?:: str)? = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('tfgpu/__init__.py has no line __version__ = "..."')
    return match.group(1)


setup(
    name="tfgpu",
    version=read_version(),
    description="Train a Keras 3 model on every GPU of a machine, and measure where the time goes",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["tfgpu", "tfgpu.*"]),
    package_data={"tfgpu": ["py.typed"], "tfgpu.report": ["templates/*"]},
    python_requires=">=3.11,<3.14",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["tfgpu = tfgpu.cli.entry:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA :: 12",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)

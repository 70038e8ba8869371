"""What comes before TensorFlow: its environment variables, and its import without its chatter.

`prepare_environment` sets variables that TensorFlow reads once, at its import; `import_tensorflow`
is the import itself. `runtime.start` comes after them.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tfgpu.cli import interrupts
from tfgpu.cli.shared_settings import VerbositySettings
from tfgpu.errors import RequestError, WorkError

_FOR_OWN_CODE = ("matplotlib", "sklearn")
"""What Keras imports for `keras.visualization` and `keras.wrappers` alone; tfgpu uses neither."""


def prepare_environment(*, verbosity: int = 0) -> None:
    """Sets the environment variables that TensorFlow and Keras read at their import.

    What the user has set already stays as it is.

    Args:
        verbosity: 0 keeps TensorFlow's C++ log to fatal errors, 1 leaves it alone.

    Raises:
        RequestError: KERAS_BACKEND asks for something else than TensorFlow.
    """
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        raise RequestError(
            f"KERAS_BACKEND is {backend!r}, but tfgpu trains with TensorFlow: "
            "unset it or set it to 'tensorflow'"
        )
    wanted = {
        # Also set when absent: ~/.keras/keras.json may name another backend.
        "KERAS_BACKEND": "tensorflow",
        # Off by default on AMD processors; LeNet trained there at 2,600 samples/s without and
        # at 8,300 to 10,000 with it, on two cores.
        "TF_ENABLE_ONEDNN_OPTS": "1",
        # TensorFlow otherwise takes nearly all memory of every GPU it sees, used or not.
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        # The numbers of nvidia-smi; CUDA's own order puts the fastest device first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    if not verbosity:
        wanted |= {"TF_CPP_MIN_LOG_LEVEL": "3", "GRPC_VERBOSITY": "ERROR"}
    missing = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(missing)
    if missing and "tensorflow" in sys.modules:
        warnings.warn(
            f"TensorFlow was imported before tfgpu set {', '.join(sorted(missing))}: "
            "no effect in this process",
            RuntimeWarning,
            stacklevel=2,
        )


@contextlib.contextmanager
def tensorflow(config: VerbositySettings) -> Iterator[None]:
    """Imports TensorFlow for the work of a command, whose signals become exceptions meanwhile.

    Args:
        config: Of the command. Its `verbosity` is that of `prepare_environment` and
            `import_tensorflow`; where it names code of the user's, Keras is imported whole.

    Raises:
        tfgpu.errors.Error: See there.
        Interrupted: SIGINT or SIGTERM was received.
    """
    prepare_environment(verbosity=config.verbosity)
    with interrupts.caught() as signals:
        try:
            import_tensorflow(verbosity=config.verbosity, own_code=config.names_own_code)
        finally:
            signals.check()
        yield


def child_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of a child process that is to import this very package, wherever it runs.

    Args:
        environment: What it is to have besides; this process's own by default.

    Returns:
        A copy, with the folder of the package before what PYTHONPATH holds.
    """
    environment = os.environ if environment is None else environment
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [environment.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def stderr_aside() -> Iterator[Any]:
    """Sends file descriptor 2 to a temporary file; yields that file.

    Python's `sys.stderr` alone would not do: the lines come from C++, before its logging starts
    and so whatever TF_CPP_MIN_LOG_LEVEL says.
    """
    with contextlib.suppress(AttributeError, OSError, ValueError):
        sys.stderr.flush()
    try:
        saved = os.dup(2)
    except OSError:  # Closed, as under some service managers: nothing to turn aside.
        with tempfile.TemporaryFile() as nothing:
            yield nothing
        return
    armed = False
    try:
        with tempfile.TemporaryFile() as aside:
            os.dup2(aside.fileno(), 2)
            try:
                if not faulthandler.is_enabled():
                    # An import that aborts (a processor without AVX) must not die silently.
                    faulthandler.enable(file=saved)
                    armed = True
                yield aside
            finally:
                if armed:
                    faulthandler.disable()
                with contextlib.suppress(AttributeError, OSError, ValueError):
                    sys.stderr.flush()
                os.dup2(saved, 2)
    finally:
        os.close(saved)


@contextlib.contextmanager
def _quickly(*, own_code: bool) -> Iterator[None]:
    """Imports in here take about half the time: no garbage collection, and no unused packages.

    Args:
        own_code: Whether `keras.visualization` and `keras.wrappers` have to work afterwards.
    """
    hidden = [name for name in _FOR_OWN_CODE if not own_code and name not in sys.modules]
    collecting = gc.isenabled()
    gc.disable()
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: not to be found.
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        if collecting:
            gc.enable()


def import_tensorflow(*, verbosity: int = 0, own_code: bool = False) -> ModuleType:
    """Imports TensorFlow and Keras without their start-up lines.

    `prepare_environment` comes first.

    Args:
        verbosity: 0 drops what the libraries say, 1 leaves it alone.
        own_code: Whether code of the user's is to run, which may use all of Keras. Without, Keras
            does not find matplotlib and scikit-learn, a third of its time; everybody else does.

    Returns:
        The module `tensorflow`.

    Raises:
        WorkError: The import failed; the message holds the end of what was said meanwhile.
    """
    with contextlib.ExitStack() as stack:
        said = None
        if not verbosity:
            said = stack.enter_context(stderr_aside())
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        stack.enter_context(_quickly(own_code=own_code))
        try:
            module = importlib.import_module("tensorflow")
            importlib.import_module("keras")
            # Loads the CUDA libraries, which speak before C++ logging starts too.
            module.config.list_physical_devices()
        except Exception as error:
            sys.stderr.flush()
            text = ""
            if said is not None:
                said.seek(0)
                text = said.read().decode(errors="replace")
            raise _import_failure(error, text) from error
    if not verbosity:
        # Warnings such as "Collective ops is not configured at program startup" are TensorFlow's
        # to itself; what the user has to know comes from `runtime.start`.
        module.get_logger().setLevel(logging.ERROR)
        logging.getLogger("absl").setLevel(logging.ERROR)
    return module


def _import_failure(error: Exception, said: str) -> WorkError:
    """The one line that says why TensorFlow could not be imported."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    # The last five lines: the cause stands at the end, and the message is one line.
    tail = f" (it said: {' | '.join(lines[-5:])})" if lines else ""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    return WorkError(
        f"TensorFlow cannot be imported: {what}{tail}; reinstall it with "
        "`pip install --force-reinstall tensorflow` or see the whole with --verbosity=1"
    )

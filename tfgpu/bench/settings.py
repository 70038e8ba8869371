"""The settings of a benchmark."""

from typing import Literal

from tfgpu.cli.settings import names, setting
from tfgpu.train.settings import DataSettings, ModelSettings, SpeedSettings, TrainSettings

FACTORS = ("device", "precision", "xla", "steps_per_execution", "input", "batch_size", "replicas")
"""What `tfgpu bench` compares."""

_BASELINE = SpeedSettings.names() | DataSettings.names() | ModelSettings.names()
_ALSO = {"run_dir", "progress", "batch_size", "optimizer", "gradient_accumulation_steps", "seed"}
_FIXED = {"strategy", "join_timeout", "compile_cache"}


class BenchSettings(TrainSettings, section="Comparison"):
    """Measure the machine, a plain baseline and one change of it at a time; say what bounds a step
    and which flag to change next. The other flags are the baseline's. Writes bench.json and charts.

    Examples:
        # the digits, every factor, in a few minutes
        tfgpu bench
        # whether reading keeps up
        tfgpu bench --dataset=folder:photos --image_size=64x64 --factors=input,batch_size
        # your model on images of your size, without any data
        tfgpu bench --model=mymodels:build --dataset=synthetic:224x224x3:1000
    """

    sections = ("Comparison", *TrainSettings.sections)
    no_flags = TrainSettings.names() - (_BASELINE | _ALSO) | _FIXED

    # Nothing is left to be decided by the machine, so that nothing is compared by accident.
    jit_compile: bool | Literal["auto"] = False
    steps_per_execution: int | Literal["auto"] = 1
    input: str = "streaming"
    batch_size: int = 128
    epochs: int | None = 1000  # The schedule must not end while the clock runs.
    run_dir: str | None = setting(None, default="runs/bench-<time>")
    """Where bench.json and the charts go."""

    factors: str = names("all", FACTORS, "a factor", twice=True)
    """What to change, one at a time: {among}, joined by commas."""
    rounds: int = setting(5, "5 is the default")
    """How often each configuration is timed, in turn with the others."""

    @property
    def chosen_factors(self) -> tuple[str, ...]:
        """The factors to compare, in the order of `FACTORS`."""
        chosen = FACTORS if self.factors == "all" else self.factors.split(",")
        return tuple(name for name in FACTORS if name in chosen)

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        for name, values in (("jit_compile", "true or false"), ("steps_per_execution", "a number")):
            if getattr(self, name) == "auto":
                self.refuse(name, f"must be {values} here, so that what is compared is known")
        if self.input == "auto":
            self.refuse("input", "must be resident or streaming here")
        if self.batch_size is None:
            self.refuse("batch_size", "must be a number here")

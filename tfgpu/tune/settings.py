"""The settings of a hyperparameter search."""

from tfgpu.cli.settings import choice, matching, setting
from tfgpu.errors import RequestError
from tfgpu.train.settings import TrainSettings


class TuneSettings(TrainSettings, section="Search"):
    """Search for better settings with KerasTuner. The flags of `tfgpu train` are what all trials
    share; --space says what is tried. The same command again goes on where it was stopped.

    Examples:
        # the digits, in a few minutes
        tfgpu tune --tuner=random --max_trials=10 --epochs=10
        # half an hour for settings of your choice
        tfgpu tune --dataset=cifar10 --space=experiments/search_recipe.py --max_minutes=30
        # four GPUs, a trial on each
        tfgpu tune --workers=4 --run_dir=runs/search
    """

    sections = ("Search", *TrainSettings.sections)
    # A trial trains on one machine, and has no report of its own.
    no_flags = frozenset({"join_timeout", "report"})

    run_dir: str | None = setting(None, default="runs/tune-<dataset>-<model>-<time>")
    """Where the search keeps its trials, its state and its result."""

    tuner: str = choice("hyperband", ("hyperband", "bayesian", "random", "grid"))
    """KerasTuner's: hyperband trains many for a few epochs and goes on with the better ones, the
    others train each trial for --epochs."""
    space: str = setting(
        "default",
        "write default, or name a Python file",
        values="default|FILE.py",
        on_resume="ignored",  # Its name; what it declares counts.
    )
    """A file that defines `space(hp) -> dict`: settings of a run, made from KerasTuner's
    hp.Choice, hp.Int, hp.Float and hp.Boolean (the file is run). `default` is one of the task's; of
    classification, for lenet."""
    objective: str | None = setting(
        None,
        "name val_loss or val_METRIC",
        word="auto",
        values="val_METRIC",
        check=matching(r"val_\w+", "must be val_loss or val_METRIC, such as val_accuracy"),
    )
    """What is compared, of the model that a trial ends with: val_loss, or the validation metric of
    the task. `auto` is the task's first, val_accuracy for classification."""
    max_trials: int | None = setting(None, word="auto", on_resume="ignored")
    """Trials at most; `auto` is 20 for random and bayesian, all there are for grid, and for
    hyperband once through its brackets, or as often as --max_minutes allows."""
    max_minutes: float | None = setting(
        None, "leave it out for no limit", word="off", values="MINUTES", on_resume="ignored"
    )
    """Time for the search, over all starts of it. Trials that are under way then are kept, and go
    on when there is more."""
    workers: int = setting(1, "1 is the default", minimum=0, on_resume="ignored")
    """Processes that train trials side by side on this machine, one GPU each, or one group of
    cores each where there is no GPU. One alone has all of them."""
    final_seeds: int = setting(3, "0 retrains nothing", minimum=0, on_resume="ignored")
    """Trainings of the best settings at the end, with seeds that the search has not seen; they
    alone read the test split. 0 tests the best trial's own model."""

    def check(self) -> None:
        """See `Settings.check`."""
        super().check()
        if self.validation_fraction == 0:
            raise RequestError(
                "--validation_fraction=0 leaves nothing to compare trials by: the test split is "
                "for the winner alone; raise the fraction"
            )
        if self.strategy == "multi_worker_mirrored":
            self.refuse(
                "strategy",
                "a trial trains on one machine; choose mirrored or one_device, and have other "
                "machines train other trials",
            )

"""The settings of a diagnosis."""

from tfgpu.cli.settings import setting
from tfgpu.errors import did_you_mean
from tfgpu.machine.runtime import PRECISIONS
from tfgpu.machine.strategy import STRATEGIES
from tfgpu.train.settings import TrainSettings

PROBE_AXES: dict[str, tuple[str, ...]] = {
    "library": ("keras", "tfgpu"),
    "strategy": STRATEGIES,
    "precision": PRECISIONS,
    "jit_compile": ("xla", "no_xla"),
    "steps_per_execution": ("1_step", "4_steps"),
    "gradient_accumulation_steps": ("no_accumulation", "accumulation"),
}
"""What `--probe` combines: the words it takes, by the setting they are values of."""


def _check_probe(value: str) -> str | None:
    known = [word for words in PROBE_AXES.values() for word in words]
    for word in value.split(",") if value not in ("none", "all") else ():
        if word not in known:
            return (
                f"{word!r} is none of {', '.join(known)}{did_you_mean(word, known)}; write none, "
                "all, or a list out of these joined by commas"
            )
    return None


class DoctorSettings(TrainSettings, section="Diagnosis"):
    """Say what keeps a training from starting, or from using the GPU, and what mends it. Exits 0
    when training can start and 1 when not.

    Examples:
        # why is my GPU not used?
        tfgpu doctor
        # in a script
        tfgpu doctor --json --devices=GPU:0
        # which combinations train here, without XLA
        tfgpu doctor --probe=mirrored,no_xla
    """

    sections = ("Diagnosis", *TrainSettings.sections)
    no_flags = TrainSettings.names() - {
        *("strategy", "devices", "join_timeout", "dataset", "data_dir", "run_dir", "progress")
    }

    json: bool = setting(False)
    """Print JSON for a script instead of lines for a person."""
    probe: str = setting(
        "none",
        "write none, all, or a list of words",
        check=_check_probe,
        values="none|all|LIST",
        parse=lambda value: {"true": "all", "false": "none"}.get(value, value),
        boolean=True,
        among=["; ".join(", ".join(words) for words in PROBE_AXES.values())],
    )
    """Train a tiny network in every combination, each in a process of its own, with stock Keras
    and with tfgpu; --probe alone is all. A list keeps the combinations with these values:
    {among}."""
    join_timeout: int = 20
    probe_limit: int = setting(120, "the default is 120 seconds", values="SECONDS")
    """After which a combination counts as one that hangs."""

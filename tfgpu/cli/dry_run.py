"""The settings of a command with who has decided each, for `--dry_run`."""

from collections.abc import Collection, Mapping
from typing import Any

from tfgpu.cli.settings import Settings, as_typed

NOTHING = "a dry run: nothing has been written"

_ALSO = ("run_dir", "resume", "out")


def given(config: Settings, *, of_the_process: bool = False) -> dict[str, Any]:
    """The settings that were given: those that are not as the class has them.

    Args:
        config: As the user gave it.
        of_the_process: Whether those are meant too that are no part of the run.
    """
    values = config.to_json()
    # Of the class: some settings have no default as a whole.
    ignored = set() if of_the_process else config.names(on_resume="ignored") - set(_ALSO)
    return {
        name: value
        for name, value in values.items()
        if getattr(config, name) != getattr(type(config), name) and name not in ignored
    }


def settings(
    config: Settings,
    asked: Collection[str],
    *,
    decided: Mapping[str, str] | None = None,
    unused: Mapping[str, str] | None = None,
) -> list[str]:
    """A line a setting, as it is typed, with who has decided it.

    Args:
        config: The settings, decided.
        asked: Names of those that were given.
        decided: As typed, what stands in the place of those that `config` leaves open, by name.
        unused: Why a setting has no meaning here, by name.
    """
    decided, unused = decided or {}, unused or {}
    rows = []
    for section in config.page().values():
        for name, setting in section.items():
            value = getattr(config, name)
            typed = as_typed(value) if value is not None or setting.word is None else setting.word
            if name in asked:
                how = "given"
            elif name in unused:
                how = f"({unused[name]})"
            elif name in decided:
                typed, how = decided[name], "decided"
            else:
                how = "" if value == getattr(type(config), name) else "decided"
            rows.append((f"--{name}={typed}", how))
    wide = max((len(flag) for flag, how in rows if how), default=0)
    return [f"  {flag:<{wide}}  {how}".rstrip() for flag, how in rows]

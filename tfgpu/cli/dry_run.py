"""The settings of a command with who has decided each, for `--dry_run`."""

from collections.abc import Collection, Mapping
from typing import Any

from tfgpu.cli.settings import Settings, as_typed

NOTHING = "a dry run: nothing has been written"

_ALSO = ("run_dir", "resume", "out")


def given(config: Settings) -> dict[str, Any]:
    """The settings that were given: those that are not as the class has them."""
    values = config.to_json()
    # Of the class: some settings have no default as a whole.
    ignored = config.names(on_resume="ignored") - set(_ALSO)
    return {
        name: value
        for name, value in values.items()
        if getattr(config, name) != getattr(type(config), name) and name not in ignored
    }


def settings(config: Settings, asked: Mapping[str, Any] | Collection[str]) -> list[str]:
    """A line a setting, as it is typed, with who has decided it.

    Args:
        config: The settings, decided.
        asked: Names of those that were given.
    """
    rows = []
    for section in config.page().values():
        for name, setting in section.items():
            if setting.on_resume == "ignored" and name not in _ALSO:
                continue
            value = getattr(config, name)
            word = setting.word if value is None and setting.word is not None else None
            default = value == getattr(type(config), name)
            how = "given" if name in asked else ("" if default else "decided")
            rows.append((f"--{name}={word or as_typed(value)}", how))
    wide = max((len(flag) for flag, how in rows if how), default=0)
    return [f"  {flag:<{wide}}  {how}".rstrip() for flag, how in rows]

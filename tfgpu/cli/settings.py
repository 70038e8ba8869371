"""Declarations of settings: each is written once, and flag, check, help and JSON follow from it.

A command's settings are a frozen dataclass. `choice`, `text`, `names`, `whole`, `number` and
`truth` make its fields; the string below a field is its help. What can be told without devices and
data is checked when the object is made: settings that exist are possible. Nothing here knows of
absl, TensorFlow or NumPy.
"""

import ast
import dataclasses
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ClassVar, NoReturn, Self, dataclass_transform

from tfgpu.errors import RequestError, did_you_mean

LARGEST = 2**31 - 1
"""Seeds and step counters are int32 somewhere below us; nothing sensible is larger."""

BUILDER = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
"""package.module:function."""

NAMED = re.compile(r"[A-Za-z_]\w*=[^,=]+")
"""One of the pairs of `pairs`."""

Check = Callable[[Any], str | None]
"""Returns why a value is impossible, or None."""


def as_typed(value: object) -> str:
    """Returns `value` as it is typed after `--flag=`."""
    if value is None:
        return "default"
    if isinstance(value, tuple | list):
        return "x".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def read_text(text: str) -> str:
    """Reads text from a command line; raises ValueError for what is the next flag."""
    # `--run_dir --epochs=3` would otherwise make a folder of that name.
    if text.startswith("--"):
        raise ValueError("is a flag where a value belongs; write --flag=value")
    return text


def _reader(kind: Callable[[str], Any], what: str) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"must be {what}") from None

    return read


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """All there is to say about one setting but its name, type, default and help.

    Attributes:
        values: What may follow `--name=`, for the help page; `word` comes before it.
        among: Names that the help page lists in place of "{among}".
        parse: Text to value; raises ValueError with what the value must be.
        check: Is not asked about a None that is allowed: that is the default or has a word.
        word: What is typed for None, such as "auto"; it takes back what a file set.
        default: What the help page gives as the default, when the field's own says too little.
        boolean: Whether `--name` and `--noname` stand for true and false.
        repeated: Whether the flag may be given several times; `parse` gives a tuple for each, and
            the value is all of them.
        section: The section of the help page. None, here and below: that of the class.
        on_resume: Whether a run may be continued with another value: "refused", since it would be
            another run; "allowed", since it decides how the run is computed and not what, though
            the bits may differ; "ignored", since it is of the process and not of the run.
        tunable: Whether trials of a search may differ in it.
    """

    values: str = "TEXT"
    among: Sequence[str] = ()
    parse: Callable[[str], Any] = read_text
    check: Check = lambda value: None
    word: str | None = None
    default: str | None = None
    boolean: bool = False
    repeated: bool = False
    section: str | None = None
    on_resume: str | None = None
    tunable: bool | None = None


def custom(value: Any, /, **declared: Any) -> Any:
    """A field with this default value; `declared`, here and below, are attributes of `Setting`."""
    return dataclasses.field(default=value, metadata={"setting": Setting(**declared)})


def choice(value: str | None, /, among: Sequence[str], **declared: Any) -> Any:
    """A field that takes one of some names."""

    def check(value: Any) -> str | None:
        near = did_you_mean(value, among) if isinstance(value, str) else ""
        return None if value in among else f"must be one of {', '.join(among)}{near}"

    values = "|".join(among)
    return custom(value, **{"values": values, "among": among, "check": check} | declared)


def text(value: str | None, /, instead: str, check: Check | None = None, **declared: Any) -> Any:
    """A field that takes text that is not empty; `instead` says what to do instead."""

    def checked(value: Any) -> str | None:
        if not isinstance(value, str):
            return f"must be text; {instead}"
        if not value.strip():
            return f"is empty; {instead}"
        return check(value) if check is not None else None

    return custom(value, check=checked, **declared)


def names(
    value: str | None,
    /,
    among: Sequence[str],
    *,
    alone: str,
    one: str,
    twice: bool = False,
    **declared: Any,
) -> Any:
    """A field that takes names joined by commas, or the word `alone`; `one` is "a <name>"."""
    known = ", ".join(among)

    def check(value: str) -> str | None:
        given = [] if value == alone else value.split(",")
        for name in given:
            if name not in among:
                near = did_you_mean(name, among)
                names_of = f"write {alone}, or names out of {known} joined by commas"
                return f"{name!r} is not {one}{near}; {names_of}"
        repeated = len(set(given)) < len(given) and not twice
        return f"names {one} twice; name each once" if repeated else None

    instead = f"write {alone}, or names out of {known}"
    values = f"{alone}|LIST"
    return text(value, instead, check, values=values, among=among, **declared)


def read_pairs(text: str) -> dict[str, str]:
    """Reads what `pairs` takes: "a=b,c=d" to {"a": "b", "c": "d"}."""
    return dict(pair.split("=", 1) for pair in text.split(","))


def pairs(value: str | None, /, example: str, **declared: Any) -> Any:
    """A field that takes names with values, NAME=VALUE joined by commas."""
    instead = f"write NAME=VALUE joined by commas, such as {example}"

    def check(value: str) -> str | None:
        given = value.split(",")
        for pair in given:
            if not NAMED.fullmatch(pair):
                return f"{pair!r} is not NAME=VALUE; {instead}"
        if len({pair.partition("=")[0] for pair in given}) < len(given):
            return "gives a name twice; give each once"
        return None

    return text(value, instead, check, **{"values": "NAME=VALUE,..."} | declared)


def whole(
    value: int | str | None, /, minimum: int, instead: str = "", auto: bool = False, **declared: Any
) -> Any:
    """A field that takes a whole number; with `auto` "auto" too, decided anew for each run."""
    instead = instead or ("or `auto`" if auto else "leave it out for a default")

    def check(value: Any) -> str | None:
        # `bool` is an `int` to Python, and never what was meant here.
        if not isinstance(value, int) or isinstance(value, bool):
            wanted = f"must be a whole number of at least {minimum}; {instead}"
            return None if auto and value == "auto" else wanted
        if value < minimum:
            return f"must be at least {minimum}; {instead}"
        return f"must be at most {LARGEST}; {instead}" if value > LARGEST else None

    read = _reader(int, "a whole number")
    if auto:
        read = _reader(lambda t: t if t == "auto" else int(t), "auto or a whole number")
    values = "auto|N" if auto else "N"
    return custom(value, **{"values": values, "parse": read, "check": check} | declared)


def number(
    value: float | None,
    /,
    *,
    instead: str = "leave it out for a default",
    minimum: float | None = None,
    above: float | None = None,
    below: float = math.inf,
    **declared: Any,
) -> Any:
    """A field that takes a number of at least `minimum` or above `above`, and below `below`."""
    wanted = f"at least {minimum}" if minimum is not None else f"above {above}"
    wanted += "" if below == math.inf else f" and below {below}"

    def check(value: Any) -> str | None:
        # Written so that NaN, which compares false with everything, is refused.
        enough = isinstance(value, float) and (
            value >= minimum if minimum is not None else value > (above or 0)
        )
        return None if enough and value < below else f"must be a number {wanted}; {instead}"

    read = _reader(float, "a number")
    return custom(value, **{"values": "NUMBER", "parse": read, "check": check} | declared)


def truth(value: bool | str, /, *, auto: bool = False, **declared: Any) -> Any:
    """A field that takes true or false; with `auto` "auto" too."""
    known = {"true": True, "false": False} | ({"auto": "auto"} if auto else {})
    wanted = "auto, true or false" if auto else "true or false"

    def check(value: Any) -> str | None:
        right = isinstance(value, bool) or (auto and value == "auto")
        return None if right else f"must be {wanted}"

    def find(text: str) -> Any:
        if text.lower() not in known:
            raise ValueError
        return known[text.lower()]

    values, read = "auto|true|false" if auto else "true|false", _reader(find, wanted)
    return custom(value, values=values, parse=read, check=check, boolean=True, **declared)


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What one command is asked to do; the fields of a subclass are that command's flags.

    A subclass becomes a frozen dataclass of itself, and says what holds for its own fields, if they
    do not say otherwise: `class DataSettings(Settings, section="Data", tunable=False)`. The
    docstring of a command's class begins with what the command does, and has its examples: `--help`
    shows both.

    Whole numbers given for a fraction or a rate become floats, and lists tuples, so that equal
    settings are equal objects.

    Attributes:
        sections: The titles of the sections of the help page, in order.
        no_flags: Names of the settings that are no flags.
        arguments: What may follow the flags; the field `paths` gets it.
        experiment: Whether settings may come from a file.

    Raises:
        RequestError: A value, or a combination of values, is impossible.
    """

    sections: ClassVar[tuple[str, ...]] = ()
    no_flags: ClassVar[Set[str]] = frozenset()
    arguments: ClassVar[str] = ""
    experiment: ClassVar[bool] = True
    _shared: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **shared: Any):
        super().__init_subclass__()
        cls._shared = {"section": "", "on_resume": "refused", "tunable": True} | shared
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, value := tuple(value))
            if field.type in (float, float | None) and type(value) is int:
                try:
                    object.__setattr__(self, field.name, value := float(value))
                except OverflowError:
                    self.refuse(field.name, "is too large for a floating-point number")
            setting = self.setting(field.name)
            allowed = value is None and (field.default is None or setting.word is not None)
            if not allowed and (why := setting.check(value)) is not None:
                self.refuse(field.name, why)
        self.check()

    def check(self) -> None:
        """Checks combinations, as far as neither devices nor data are needed.

        Raises:
            RequestError: Names the settings as they are typed, the constraint and the way out.
        """

    @classmethod
    @functools.cache
    def setting(cls, name: str) -> Setting:
        """Returns the declaration of a field."""
        # A subclass may give a field another default, or declare it anew; it stays in its section.
        bases = [base for base in cls.__mro__ if issubclass(base, Settings)]
        found = [base for base in bases if name in base.__dict__.get("__annotations__", {})]
        fields = (base.__dict__["__dataclass_fields__"][name] for base in found)
        setting: Setting = next(f.metadata["setting"] for f in fields if f.metadata)
        shared = {k: v for k, v in found[-1]._shared.items() if getattr(setting, k) is None}
        return dataclasses.replace(setting, **shared)

    @classmethod
    def help(cls, name: str) -> str:
        """Returns the string below the field in the source; "" where there is no source."""
        texts = (_documented(base.__module__).get((base.__name__, name)) for base in cls.__mro__)
        return next(filter(None, texts), "").replace("{among}", ", ".join(cls.setting(name).among))

    @classmethod
    def names(cls, **attributes: Any) -> frozenset[str]:
        """Returns the names of the settings whose declarations have these attributes."""
        known = {field.name: cls.setting(field.name) for field in dataclasses.fields(cls)}
        wanted = attributes.items()
        return frozenset(n for n, s in known.items() if all(getattr(s, k) == v for k, v in wanted))

    @classmethod
    def page(cls) -> dict[str, dict[str, Setting]]:
        """Returns the flags in each section of the help page, by name."""
        page: dict[str, dict[str, Setting]] = {title: {} for title in cls.sections}
        for name in (field.name for field in dataclasses.fields(cls)):
            if name != "paths" and name not in cls.no_flags:
                setting = cls.setting(name)
                page[str(setting.section)][name] = setting
        return page

    def to_json(self) -> dict[str, Any]:
        """Returns what `config.json` holds: only types that JSON keeps as they are."""
        values = dataclasses.asdict(self).items()
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Returns the object with these settings, and the defaults for those it does not name.

        Args:
            settings: What `to_json` returned, or a part of it.

        Raises:
            RequestError: A name is unknown, or a value is impossible or of the wrong type.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in settings:
            if name not in known:
                near = did_you_mean(str(name), known)
                raise RequestError(
                    f"{name!r} is not a setting{near}; `tfgpu train --help` lists them"
                )
        return cls(**settings)

    def refuse(self, name: str, why: str) -> NoReturn:
        """Raises the RequestError that names a setting as it is typed, and why it cannot be."""
        value = getattr(self, name)
        # Only a file can hold a null where none belongs, so it is shown as it stands there.
        raise RequestError(f"--{name}={'null' if value is None else as_typed(value)}: {why}")


@functools.cache
def _documented(module: str) -> dict[tuple[str, str], str]:
    """The strings below the fields of a module's classes, by class and field."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError):
        return {}
    return {
        (node.name, field.target.id): " ".join(str(text.value.value).split())
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for field, text in zip(node.body, node.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }

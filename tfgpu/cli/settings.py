"""Declarations of settings: each is written once, and flag, check, help and JSON follow from it.

A command's settings are a class with fields such as

    early_stopping: int | None = setting(None, "leave it out to train every epoch", word="off")

The type of a field says what it takes, `setting` what else there is to know, and the string below
it is its help. What can be told without devices and data is checked when the object is made:
settings that exist are possible. Nothing here knows of absl, TensorFlow or NumPy.
"""

import ast
import dataclasses
import functools
import inspect
import math
import re
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, ClassVar, Literal, NoReturn, Self, dataclass_transform, get_args

from tfgpu.errors import RequestError, did_you_mean

LARGEST = 2**31 - 1  # Seeds and step counters are int32 somewhere below us.
BUILDER = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"  # package.module:function
Check = Callable[[Any], str | None]  # Returns why a value is impossible, or None.


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


@dataclasses.dataclass(frozen=True)
class Setting:
    """All there is to say about one setting but its name, type, default and help."""

    # Of these the type says what the declaration does not; see `_OF_TYPES`.
    values: str = "TEXT"  # What may follow `--name=`, for the help page; `word` comes before it.
    wanted: str = ""  # What a value has to be that `parse` cannot read; else its error says it.
    instead: str = ""  # What to do instead of giving a value that `rule` refuses.
    parse: Callable[[str], Any] = read_text
    rule: Callable[["Setting", Any], str | None] | None = None
    boolean: bool = False  # Whether `--name` and `--noname` stand for true and false.
    also: tuple[Any, ...] = ()  # Values beside those of the type: None, or "auto".

    minimum: float | None = None  # None: 1 for whole numbers, and others have to be above 0.
    below: float = math.inf
    among: Sequence[str] = ()  # Names that the help page lists in place of "{among}".
    check: Check | None = None  # Is asked about what `rule` lets pass.
    word: str | None = None  # What is typed for None, such as "auto"; it undoes what a file says.
    default: str | None = None  # For the help page, where the field's own says too little.
    required: str = ""  # An example of what has to be given.
    repeated: bool = False  # Whether the flag may be given several times; the value is a tuple.

    # And of these the class, for all of its fields.
    section: str = ""  # Of the help page.
    # Whether a run may be continued with another value: "refused", since it would be another run;
    # "allowed", since it decides how the run is computed and not what, though the bits may differ;
    # "ignored", since it is of the process and not of the run.
    on_resume: str = "refused"
    tunable: bool = True  # Whether trials of a search may differ in it.

    def read(self, text: str) -> Any:
        """Returns the value that was typed; raises ValueError with what it has to be."""
        if text == self.word:
            return None
        try:
            return text if text in self.also else self.parse(text)
        except (KeyError, ValueError) as error:
            why = f"must be {self.wanted}" if self.wanted else str(error)
            raise ValueError(f"{why}, or {self.word}" if self.word else why) from None

    def problem(self, value: Any) -> str | None:
        """Returns why a value is impossible, or None."""
        if value in self.also:
            return None
        if self.rule is not None and (why := self.rule(self, value)) is not None:
            return f"{why}; {self.instead}" if self.instead else why
        return self.check(value) if self.check is not None else None


def _text(setting: Setting, value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be text"
    return None if value.strip() else "is empty"


def _truth(setting: Setting, value: Any) -> str | None:
    return None if isinstance(value, bool) else f"must be {setting.wanted}"


def _whole(setting: Setting, value: Any) -> str | None:
    least = 1 if setting.minimum is None else setting.minimum
    # `bool` is an `int` to Python, and never what was meant here.
    if not isinstance(value, int) or isinstance(value, bool):
        return f"must be a whole number of at least {least}"
    if value < least:
        return f"must be at least {least}"
    return f"must be at most {LARGEST}" if value > LARGEST else None


def _number(setting: Setting, value: Any) -> str | None:
    least, below = setting.minimum, setting.below
    # Written so that NaN, which compares false with everything, is refused.
    enough = isinstance(value, float) and (value > 0 if least is None else value >= least)
    wanted = "above 0" if least is None else f"at least {least}"
    wanted += "" if below == math.inf else f" and below {below}"
    return None if enough and value < below else f"must be a number {wanted}"


def _size(setting: Setting, value: Any) -> str | None:
    sides = value if isinstance(value, tuple) else ()
    if len(sides) == 2 and all(type(side) is int and 1 <= side <= LARGEST for side in sides):
        return None
    return "must be two whole numbers of at least 1, height x width, as 32x32"


def _read_truth(text: str, **more: str) -> object:
    return {"true": True, "false": False, **more}[text.lower()]


def _read_size(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"\d+(x\d+)?", text):
        raise ValueError
    sides = [int(side) for side in text.split("x")]
    return sides[0], sides[-1]


_AUTO = Literal["auto"]
_ALSO: dict[Any, str | None] = {type(None): None, _AUTO: "auto"}
# What the type of a field says of it: values, wanted, instead, parse, rule and boolean.
_OF_TYPES: dict[Any, Setting] = {
    str: Setting("TEXT", "", "leave it out for the default", read_text, _text),
    int: Setting("N", "a whole number", "leave it out for a default", int, _whole),
    int | _AUTO: Setting("auto|N", "auto or a whole number", "or `auto`", int, _whole),
    float: Setting("NUMBER", "a number", "leave it out for a default", float, _number),
    bool: Setting("true|false", "true or false", "", _read_truth, _truth, True),
    bool | _AUTO: Setting(
        *("auto|true|false", "auto, true or false", ""),
        *(functools.partial(_read_truth, auto="auto"), _truth, True),
    ),
    tuple[int, int]: Setting(
        *("SIZE|HEIGHTxWIDTH", "HEIGHTxWIDTH, such as 32x32, or one number for a square", ""),
        *(_read_size, _size),
    ),
}


def setting(value: Any, instead: str = "", /, **declared: Any) -> Any:
    """A field with this default; `instead` and `declared` are attributes of its `Setting`."""
    if instead:
        declared["instead"] = instead
    return dataclasses.field(default=value, metadata=declared)


def choice(value: str | None, among: Sequence[str], /, **declared: Any) -> Any:
    """A field that takes one of some names."""

    def check(value: Any) -> str | None:
        near = did_you_mean(value, among) if isinstance(value, str) else ""
        return None if value in among else f"must be one of {', '.join(among)}{near}"

    taken = {"rule": None, "check": check, "among": among, "values": "|".join(among)}
    return setting(value, **(taken | declared))


def matching(pattern: str, why: str) -> Check:
    """A check that text is of a form; `why` is said of other text."""
    return lambda value: None if re.fullmatch(pattern, value) else why


def listed(
    one: str, among: Sequence[str] | str, alone: str, instead: str = "", *, twice: bool = False
) -> Check:
    """A check that text is `alone`, or names joined by commas; `among` may be their pattern."""
    pattern, known = (among, ()) if isinstance(among, str) else ("|".join(among), among)
    out_of = f" out of {', '.join(known)}" if known else ""
    instead = instead or f"write {alone}, or names{out_of} joined by commas"

    def check(value: str) -> str | None:
        given = [] if value == alone else value.split(",")
        for name in given:
            if not re.fullmatch(pattern, name):
                return f"{name!r} is not {one}{did_you_mean(name, known)}; {instead}"
        repeated = len(set(given)) < len(given) and not twice
        return f"names {one} twice; name each once" if repeated else None

    return check


def names(value: str, among: Sequence[str], one: str, *, twice: bool = False) -> Any:
    """A field that takes names joined by commas, or its default alone; see `listed`."""
    instead = f"write {value}, or names out of {', '.join(among)}"
    check = listed(one, among, value, twice=twice)
    return setting(value, instead, values=f"{value}|LIST", among=among, check=check)


def read_pairs(text: str) -> dict[str, str]:
    """Reads what `pairs` takes: "a=b,c=d" to {"a": "b", "c": "d"}."""
    return dict(pair.split("=", 1) for pair in text.split(","))


def pairs(value: str | None, example: str, /, **declared: Any) -> Any:
    """A field that takes names with values, NAME=VALUE joined by commas."""
    instead = f"write NAME=VALUE joined by commas, such as {example}"
    well_formed = listed("NAME=VALUE", r"[A-Za-z_]\w*=[^,=]+", "", instead, twice=True)

    def check(value: str) -> str | None:
        if (why := well_formed(value)) is not None:
            return why
        again = len(read_pairs(value)) < len(value.split(","))
        return "gives a name twice; give each once" if again else None

    return setting(value, instead, check=check, **({"values": "NAME=VALUE,..."} | declared))


@dataclass_transform(frozen_default=True, kw_only_default=True)
@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What one command is asked to do; the fields of a subclass are that command's flags.

    A subclass is made a frozen dataclass, and says what holds for its own fields, if they do not
    say otherwise: `class DataSettings(Settings, section="Data", tunable=False)`. A field that it
    has from a base may get another default, or be declared again; then it says what differs. The
    docstring of a command's class begins with what the command does, and has its examples: `--help`
    shows both.

    Whole numbers given for a fraction or a rate become floats, and lists tuples, so that equal
    settings are equal objects.

    Raises:
        RequestError: A value, or a combination of values, is impossible.
    """

    sections: ClassVar[tuple[str, ...]] = ()  # The titles on the help page, in order.
    no_flags: ClassVar[Set[str]] = frozenset()  # Names of the settings that are no flags.
    arguments: ClassVar[str] = ""  # What may follow the flags; the field `paths` gets it.
    experiment: ClassVar[bool] = True  # Whether settings may come from a file.
    _shared: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls, **shared: Any):
        super().__init_subclass__()
        cls._shared = shared
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            setting, value = self.setting(field.name), getattr(self, field.name)
            if isinstance(value, list):
                object.__setattr__(self, field.name, value := tuple(value))
            if setting.parse is float and type(value) is int:
                try:
                    object.__setattr__(self, field.name, value := float(value))
                except OverflowError:
                    self.refuse(field.name, "is too large for a floating-point number")
            if (why := setting.problem(value)) is not None:
                self.refuse(field.name, why)
        for name in (field.name for field in dataclasses.fields(self)):
            example, instead = self.setting(name).required, self.setting(name).instead
            if example and not getattr(self, name):
                raise RequestError(f"--{name} is missing: {instead}, such as --{name}={example}")
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
        # What the nearest class says holds; the type and the section are those of the first.
        bases: list[Any] = [b for b in cls.__mro__ if name in inspect.get_annotations(b)]
        types = [inspect.get_annotations(base)[name] for base in bases]
        of_type = next((s for t, s in _OF_TYPES.items() if types[-1] in (t, t | None)), Setting())
        beside = {part for each in types for part in get_args(each)}
        also = tuple(value for part, value in _ALSO.items() if part in beside)
        said = (base.__dataclass_fields__[name].metadata for base in bases)
        return dataclasses.replace(of_type, **ChainMap(*said, bases[-1]._shared, {"also": also}))

    @classmethod
    def help(cls, name: str) -> str:
        """Returns the string below the field in the source; "" where there is no source."""
        texts = (_documented(base.__module__).get((base.__name__, name)) for base in cls.__mro__)
        return next(filter(None, texts), "").replace("{among}", ", ".join(cls.setting(name).among))

    @classmethod
    def names(cls, **attributes: Any) -> frozenset[str]:
        """Returns the names of the settings whose declarations have these attributes."""
        known = [field.name for field in dataclasses.fields(cls)]
        return frozenset(n for n in known if attributes.items() <= vars(cls.setting(n)).items())

    @classmethod
    def page(cls) -> dict[str, dict[str, Setting]]:
        """Returns the flags in each section of the help page, by name."""
        page: dict[str, dict[str, Setting]] = {title: {} for title in cls.sections}
        for name in (field.name for field in dataclasses.fields(cls)):
            if name != "paths" and name not in cls.no_flags:
                page[cls.setting(name).section][name] = cls.setting(name)
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
        for name in (name for name in settings if name not in known):
            near = did_you_mean(str(name), known)
            raise RequestError(f"{name!r} is not a setting{near}; `tfgpu train --help` lists them")
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

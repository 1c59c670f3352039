"""The data sources by name.

A source is a random-access sequence: `source[i]` is {"image": uint8 [H,W,C] or encoded bytes, "label": int}. What else
it may tell (class names, labels, a digest) is in `catalogue`. To add one, write a factory (split, *, option=default)
and a line in `SOURCES`: its keywords become the options, with the types of their annotations.
"""

import inspect
import numbers
import os
import pathlib
import typing
from typing import Any

from robust_vit.data import arrays, folder, huggingface, splits, synthetic, tfds
from robust_vit.errors import check, lookup, nearest
from robust_vit.typing import Source

SOURCES = {
    "digits": arrays.digits,
    "synthetic": synthetic.synthetic,
    "tfds": tfds.tfds,
    "huggingface": huggingface.huggingface,
    "folder": folder.folder,
    "npz": arrays.npz,
}


def names() -> list[str]:
    """Returns the names that `build` knows."""
    return sorted(SOURCES)


def build(name: str, split: str, **options: Any) -> Source:
    """Opens one split of a data set.

    Args:
      name: one of `names()`.
      split: "train", "validation" or "test".
      **options: the keywords of that source's factory, such as `path` of a folder.

    Returns:
      A picklable source with `num_classes`, `len` and `[i]`.

    Raises:
      ValueError: unknown name, split or option, with the nearest that exists.
    """
    check_options(name, options)
    check("split", split, split in splits.SPLITS, f"one of {', '.join(splits.SPLITS)}")
    return SOURCES[name](split, **options)


BROAD = {str: str | os.PathLike, int: numbers.Integral, float: numbers.Real}  # what serves as a type


class Required:
    """Stands for the default of an option that must be given."""

    def __repr__(self) -> str:
        return "required"


REQUIRED = Required()


def options(name: str) -> dict[str, Any]:
    """Returns the options of a source with their defaults, `REQUIRED` where one must be given.

    Raises:
      ValueError: unknown name, with the nearest that exists.
    """
    return {
        option: REQUIRED if parameter.default is parameter.empty else parameter.default
        for option, parameter in _parameters(name).items()
    }


def option_types(name: str) -> dict[str, str]:
    """Returns the options of a source with their types as text: {"path": "str", "test_fraction": "float | None"}."""
    return {
        option: " | ".join("None" if kind is type(None) else kind.__name__ for kind in _kinds(parameter))
        for option, parameter in _parameters(name).items()
    }


def check_options(name: str, given: dict[str, Any]) -> None:
    """Raises ValueError unless `name` is a source and `given` its options, of the right types and with none missing."""
    lookup("data.name", name, SOURCES)
    for option, value in given.items():
        _check_known(name, option)
        if value is None and options(name)[option] is REQUIRED:
            continue  # a placeholder: named below
        kinds = _kinds(_parameters(name)[option])
        broad = tuple(BROAD.get(kind, kind) for kind in kinds)
        fits = isinstance(value, broad) and (bool in kinds or not isinstance(value, bool))
        check(f"data.options.{option}", value, fits, f"of type {option_types(name)[option]}")
    missing = [option for option, default in options(name).items() if default is REQUIRED and given.get(option) is None]
    check(f"data.options.{', '.join(missing)}", None, not missing, f"given for {name}")


def parse_location(location: str) -> tuple[str, dict[str, Any]]:
    """Reads where data are from one word of the command line.

    Args:
      location: "digits", "synthetic", "folder:/path", "npz:/path", "huggingface:/path/or/name", "tfds:name:version".

    Returns:
      (name, options) for `build`: "folder:/pictures" gives ("folder", {"path": "/pictures"}).

    Raises:
      ValueError: one line that says what is allowed.
    """
    name, colon, rest = location.partition(":")
    if location and name not in SOURCES and pathlib.Path(location).expanduser().exists():
        path = pathlib.Path(location).expanduser()
        arrays_there = path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npz")))
        kind = "npz" if arrays_there else "folder" if path.is_dir() else "huggingface"
        raise ValueError(f"data = {location!r}: must say what kind of data it is; did you mean '{kind}:{location}'?")
    lookup("data", name, SOURCES)
    needed = [option for option, default in options(name).items() if default is REQUIRED]
    if not needed:
        check("data", location, not colon, f"{name!r} alone; it is stored nowhere")
        return name, {}
    check("data", location, bool(rest), f"{name}:{needed[0].upper()}")
    local = needed[0] == "path" and rest.startswith("~")
    return name, {needed[0]: str(pathlib.Path(rest).expanduser()) if local else rest}


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """The keywords that a source takes, its own and those of `open_split`."""
    known: dict[str, inspect.Parameter] = {}
    for function in (lookup("data.name", name, SOURCES), splits.open_split):
        parameters = inspect.signature(function).parameters.values()
        known |= {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break  # takes no options of open_split
    return known


def _kinds(parameter: inspect.Parameter) -> tuple[type, ...]:
    """The types that an option's annotation allows."""
    return typing.get_args(parameter.annotation) or (parameter.annotation,)


def _check_known(name: str, option: str) -> None:
    known = _parameters(name)
    if option not in known:
        listing = ", ".join(known) or "no options"
        raise ValueError(f"data.options.{option}: {name} takes {listing}{nearest(option, known)}")

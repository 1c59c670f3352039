"""Rules for the values of fields: each is called with a field's dotted name and its value, and raises in one line."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from robust_vit import attacks
from robust_vit.data import host
from robust_vit.errors import check, lookup
from robust_vit.evaluation import suites
from robust_vit.training import trackers

Rule = Callable[[str, Any], None]


def whole(low: int, high: int | None = None) -> Rule:
    """A whole number of at least `low`, and at most `high`."""
    allowed = f"a whole number >= {low}" if high is None else f"a whole number in [{low}, {high}]"

    def rule(field: str, value: Any) -> None:
        fits = isinstance(value, int) and not isinstance(value, bool)
        check(field, value, fits and low <= value and (high is None or value <= high), allowed)

    return rule


def number(allowed: str, fits: Callable[[float], bool]) -> Rule:
    """A finite number that `fits`, which `allowed` says in words."""

    def rule(field: str, value: Any) -> None:
        real = isinstance(value, int | float) and not isinstance(value, bool)
        check(field, value, real and math.isfinite(value) and fits(value), allowed)

    return rule


def name(known: Callable[[], Iterable[str]]) -> Rule:
    """One of the names that `known` lists when asked."""
    return lambda field, value: lookup(field, value if isinstance(value, str) else repr(value), dict.fromkeys(known()))


def one_of(*allowed: str) -> Rule:
    """One of a few words."""
    return name(lambda: allowed)


def attack_name(field: str, value: Any) -> None:
    """An attack, or an alias of one."""
    attacks.known_as(value if isinstance(value, str) else repr(value), field)


def truth(field: str, value: Any) -> None:
    """True or False."""
    check(field, value, isinstance(value, bool), "True or False")


def word(field: str, value: Any) -> None:
    """A word, whatever it is."""
    check(field, value, isinstance(value, str), "a word")


def step(field: str, value: Any) -> None:
    """A checkpoint of a run."""
    fits = isinstance(value, str) and (value in ("best", "latest") or value.isdigit())
    check(field, value, fits, "'best', 'latest' or a step such as '1200'")


def numbers(field: str, value: Any) -> None:
    """A sequence of finite numbers, such as a mean for each channel."""
    several = isinstance(value, list | tuple)
    fits = several and all(isinstance(one, int | float) and math.isfinite(one) for one in value)
    check(field, value, fits, "a sequence of finite numbers, one a channel")


def span(allowed: str, top: float) -> Rule:
    """Two numbers, 0 < low <= high <= top."""

    def rule(field: str, value: Any) -> None:
        two = isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(x, int | float) for x in value)
        check(field, value, two and 0 < value[0] <= value[1] <= top and math.isfinite(value[1]), allowed)

    return rule


def milestones(field: str, value: Any) -> None:
    """Epochs, rising."""
    several = isinstance(value, list | tuple)
    fits = several and all(isinstance(one, int | float) and not isinstance(one, bool) and 0 < one for one in value)
    rising = fits and all(a < b < math.inf for a, b in zip((0, *value), value, strict=False))
    check(field, value, rising, "a sequence of epochs that rise, such as (10, 15)")


def each(rule: Rule, what: str) -> Rule:
    """A sequence whose every one fits a rule, or ()."""

    def several(field: str, value: Any) -> None:
        check(field, value, isinstance(value, list | tuple), f"a sequence of {what}, one a stage")
        for one in value:
            rule(field, one)

    return several


def patterns(field: str, value: Any) -> None:
    """A sequence of words."""
    several = isinstance(value, list | tuple) and all(isinstance(one, str) and one for one in value)
    check(field, value, several, "a sequence of patterns such as ('patch_embed', 'blocks_[0-5]')")


def transforms(field: str, value: Any) -> None:
    """A sequence of transforms of `data.host`."""
    check(field, value, isinstance(value, list | tuple), "a sequence such as ('random_crop(32, padding=4)', 'flip')")
    try:
        host.build(value)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def suite(field: str, value: Any) -> None:
    """Comma-separated names of evaluation suites, or nothing."""
    check(field, value, isinstance(value, str), f"text, of {', '.join(suites.SUITES)}; '' for none")
    try:
        suites.parse(value or ())
    except ValueError as error:
        raise ValueError(f"{field.removesuffix('suite')}{error}") from None


def listed(field: str, value: Any) -> None:
    """Comma-separated names of trackers whose packages are installed, or nothing."""
    check(field, value, isinstance(value, str), f"text, of {', '.join(trackers.TRACKERS)}; '' for none")
    trackers.check(value)


POSITIVE = number("> 0 and finite", lambda x: x > 0)
NOT_NEGATIVE = number(">= 0 and finite", lambda x: x >= 0)
RATE = number("in [0, 1)", lambda x: 0 <= x < 1)
PROBABILITY = number("in [0, 1]", lambda x: 0 <= x <= 1)
FACTOR = number("in (0, 1]", lambda x: 0 < x <= 1)
finite = number("a finite number", lambda x: True)


def like(default: Any) -> Rule:
    """The rule for a model's keyword with such a default: sizes and numbers of things are at least 1."""
    if isinstance(default, bool):
        return truth
    if isinstance(default, int):
        return whole(1)
    if isinstance(default, float):
        return lambda field, value: None if value is None else POSITIVE(field, value)
    if isinstance(default, str):
        return word
    return sizes if isinstance(default, tuple) else lambda field, value: None


def sizes(field: str, value: Any) -> None:
    """A sequence of whole numbers of at least 1: one for each stage."""
    several = isinstance(value, list | tuple) and len(value) > 0
    fits = several and all(isinstance(one, int) and not isinstance(one, bool) and one >= 1 for one in value)
    check(field, value, fits, "a sequence of whole numbers >= 1")


def image_size(field: str, value: Any) -> None:
    """A side of a square, or (height, width)."""
    sizes(field, value if isinstance(value, list | tuple) else [value])

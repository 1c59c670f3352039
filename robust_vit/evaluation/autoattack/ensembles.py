"""Which attacks make an ensemble, in which order and with which settings: AutoAttack's versions, and some beyond it.

    version    attacks, in order
    standard   linf, l2: apgd-ce, apgd-t (9 targets), fab-t (9 targets), square (5000 queries)
               l1: apgd-ce x5, apgd-t (5 targets), both through radii 3, 2, 1 epsilon, fab-t (9), square
    plus       apgd-ce x5, apgd-dlr x5, fab x5, square, apgd-t (9), fab-t (9)
    rand       apgd-ce, apgd-dlr, the gradient averaged over 20 draws: for models that are random on purpose
    malt       apgd-ce, apgd-malt: nine targets chosen by the slope towards them
    quick      apgd-ce, apgd-t (1 target), 10 steps each: for use in training, an upper bound on the others

Where a model has too few classes for a part, the nearest thing that works is run instead, and said.

References: https://github.com/fra31/auto-attack; Croce & Hein 2020, https://arxiv.org/abs/2003.01690; MALT
("apgd-malt"), https://arxiv.org/abs/2407.02240; probability margin ("apgd-pma"), https://arxiv.org/abs/2411.15210;
PGD that stops where its iterates repeat ("pgd"), https://arxiv.org/abs/2503.19347.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from robust_vit import errors

# The numbers are folded into the keys and never change.
CODES = {
    "apgd-ce": 1,
    "apgd-dlr": 2,
    "apgd-t": 3,
    "fab": 4,
    "fab-t": 5,
    "square": 6,
    "apgd-malt": 7,
    "apgd-pma": 8,
    "pgd": 9,
}
LOSSES = {
    "apgd-ce": "cross_entropy",
    "apgd-dlr": "dlr",
    "apgd-t": "targeted_dlr",
    "apgd-malt": "targeted_dlr",
    "apgd-pma": "probability_margin",
}
TARGETED = ("apgd-t", "apgd-malt", "fab-t")


@dataclasses.dataclass(frozen=True)
class Part:
    """One attack of an ensemble.

    Attributes:
      name: one of `CODES`.
      steps: iterations; queries for square.
      restarts: random restarts.
      targets: how many wrong classes to aim at, one after the other; 0 for an untargeted attack.
      loss: of APGD; "" for the others.
      large_radii: APGD in l1: stages of radius 3, 2 and 1 epsilon.
      eot: gradient evaluations averaged per step of APGD.
    """

    name: str
    steps: int = 100
    restarts: int = 1
    targets: int = 0
    loss: str = ""
    large_radii: bool = False
    eot: int = 1

    @property
    def items(self) -> list[tuple[int, int]]:
        """(restart, target rank) of each item in the reference's order: for each target, its restarts. Rank 0 is no
        target.
        """
        ranks = range(1, self.targets + 1) if self.targets else (0,)
        return [(restart, rank) for rank in ranks for restart in range(self.restarts)]


def part(name: str, **settings: Any) -> Part:
    """A part with its reference settings, changed by `settings`.

    Raises:
      ValueError: if the name or a setting is unknown, or a count is below 1.
    """
    errors.lookup("attack", name, CODES)
    defaults: dict[str, Any] = {"loss": LOSSES.get(name, ""), "targets": 9 if name in TARGETED else 0}
    defaults["steps"] = {"square": 5000, "pgd": 40}.get(name, 100)
    settings = {("steps" if field == "queries" else field): value for field, value in settings.items()}
    known = {field.name: field for field in dataclasses.fields(Part) if field.name != "name"}
    for field, value in settings.items():
        errors.lookup(f"settings of {name}", field, known)
        if field in ("steps", "restarts", "eot") or (field == "targets" and name in TARGETED):
            errors.check(f"{name}.{field}", value, isinstance(value, int) and value >= 1, "a whole number, at least 1")
    return Part(name, **{**defaults, **settings})


def _standard(norm: str) -> list[Part]:
    if norm == "l1":
        first = [part("apgd-ce", restarts=5, large_radii=True), part("apgd-t", targets=5, large_radii=True)]
    else:
        first = [part("apgd-ce"), part("apgd-t")]
    return [*first, part("fab-t"), part("square")]


def _plus(norm: str) -> list[Part]:
    several = [part(name, restarts=5) for name in ("apgd-ce", "apgd-dlr", "fab")]
    return [*several, part("square"), part("apgd-t"), part("fab-t")]


VERSIONS = {
    "standard": _standard,
    "plus": _plus,
    "rand": lambda norm: [part("apgd-ce", eot=20), part("apgd-dlr", eot=20)],
    "malt": lambda norm: [part("apgd-ce"), part("apgd-malt")],
    "quick": lambda norm: [part("apgd-ce", steps=10), part("apgd-t", steps=10, targets=1)],
    "fast": lambda norm: [
        part("apgd-pma", steps=50, restarts=2),
        part("apgd-malt", steps=50),
        part("square", steps=1000),
    ],
}


def parts(
    version: str | Sequence[str],
    norm: str,
    budget: float = 1.0,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Part]:
    """The parts of a version, or of a list of attack names.

    Args:
      version: one of `VERSIONS`, or names of `CODES` in the order to run them.
      norm: "linf", "l2" or "l1".
      budget: multiplies all steps and queries; below 1 the result is an upper bound on the real one.
      settings: {attack name: {field of Part: value}}, after the budget; "queries" is another name for square's steps.

    Raises:
      ValueError: if a name is unknown, a name is given twice, or a setting belongs to an attack that does not run.
    """
    errors.check("budget", budget, budget > 0, "above 0")
    if isinstance(version, str):
        chosen = errors.lookup("version", version, VERSIONS)(norm)
    else:
        errors.check("version", list(version), len(version) > 0, "a version or at least one attack name")
        errors.check("version", list(version), len(set(version)) == len(version), "a list without repetitions")
        chosen = [part(name) for name in version]
    chosen = [dataclasses.replace(p, steps=max(1, round(p.steps * budget))) for p in chosen]
    settings = dict(settings or {})
    for name in settings:
        errors.lookup("settings", name, {p.name: p for p in chosen})
    return [part(p.name, **{**_fields(p), **settings.get(p.name, {})}) for p in chosen]


def _fields(p: Part) -> dict[str, Any]:
    return {field: value for field, value in dataclasses.asdict(p).items() if field != "name"}


def fit(p: Part, classes: int) -> tuple[Part, list[str]]:
    """Makes a part fit a model with few classes; returns it with notes on what changed.

    There are K - 1 wrong classes to aim at; DLR compares three logits and targeted DLR four.
    """
    notes = []
    if p.targets > classes - 1:
        notes.append(f"{p.name}: {classes - 1} targets in place of {p.targets}: the model has {classes} classes")
        p = dataclasses.replace(p, targets=classes - 1)
    replacement = {"dlr": "margin", "targeted_dlr": "targeted_cross_entropy"}
    fewest = {"dlr": 3, "targeted_dlr": 4}.get(p.loss, 2)
    if classes < fewest:
        instead = replacement[p.loss]
        notes.append(
            f"{p.name}: loss {instead} instead of {p.loss}, which needs {fewest} classes; the model has {classes}"
        )
        p = dataclasses.replace(p, loss=instead)
    return p, notes

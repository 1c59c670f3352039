"""What training minimises: each objective is handed the attack and returns one loss per example.

    objective = objectives.build("trades", beta=6.0)
    outcome = objective(forward, statistics, adversary, attack, keys, images, targets, strength)

`forward(images, statistics)` is the training-mode pass whose weights get gradients; `adversary` is the `LogitsFn` that
the attack differentiates (fixed weights). The two are separate because normalisation and drop path may behave
differently in them. `targets` are distributions [B,K], so label smoothing and mixed labels need no special case.
What only some ask for comes last, as an `Aside`: a frozen teacher, what the objective remembers, the epoch.

To add one: write a factory in a file of its own and add its line to OBJECTIVES. It calls the attack once at most and
returns what came back as `Outcome.attacked`, so that a perturbation of the weights can repeat its loss there.
"""

from collections.abc import Callable
from typing import Any

from robust_vit.errors import lookup
from robust_vit.objectives import encoders
from robust_vit.objectives.adversarial import adversarial
from robust_vit.objectives.standard import standard
from robust_vit.objectives.trades import trades
from robust_vit.typing import Objective

OBJECTIVES = {"standard": standard, "adversarial": adversarial, "trades": trades}
TEACHERS: frozenset[str] = frozenset()  # those that need a frozen classifier
MEMORIES: dict[str, Callable[[int], Any]] = {}  # what those that remember begin with, from the number of classes


def names() -> list[str]:
    """Lists the registered objectives of classifiers; `encoders.ENCODERS` has those of encoders."""
    return sorted(OBJECTIVES)


def build(name: str, **keywords) -> Objective:
    """Makes the objective `name`; keywords are those of its factory.

    Raises:
      ValueError: for an unknown name, a misspelt keyword or a value outside its range.
    """
    return lookup("objective.name", name, every())(**keywords)


def every() -> dict[str, Callable[..., Objective]]:
    """Returns all objectives by name: those of classifiers, and those of encoders."""
    return OBJECTIVES | encoders.ENCODERS


def memory(name: str, num_classes: int) -> Any:
    """What the objective `name` remembers at the first step: a tree of arrays, () for most."""
    return MEMORIES[name](num_classes) if name in MEMORIES else ()

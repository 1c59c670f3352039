"""What training minimises: each objective is handed the attack and returns one loss per example.

    objective = objectives.build("trades", beta=6.0)
    outcome = objective(forward, statistics, adversary, attack, keys, images, targets, strength)

`forward(images, statistics)` is the training-mode pass whose weights get gradients; `adversary` is the `LogitsFn` that
the attack differentiates (fixed weights). The two are separate because normalisation and drop path may behave
differently in them. `targets` are distributions [B,K], so label smoothing and mixed labels need no special case.
What only some ask for comes last, as an `Aside`: a frozen teacher, what the objective remembers, the epoch.

To add one: write a factory in a file of its own and add its line to OBJECTIVES. It calls the attack once at most and
returns what came back as `Outcome.attacked`, so that a perturbation of the weights can repeat its loss there. What it
draws itself it draws from `passes.own_keys`. `tests/objectives/test_objective_contract.py` now tests it.
"""

import inspect
from collections.abc import Callable
from typing import Any

from robust_vit.errors import lookup
from robust_vit.objectives import encoders
from robust_vit.objectives.adversarial import adversarial
from robust_vit.objectives.distillation.ard import ard
from robust_vit.objectives.distillation.deit import deit_hard, deit_soft
from robust_vit.objectives.distillation.ltd import ltd
from robust_vit.objectives.distillation.rslad import rslad
from robust_vit.objectives.gkl import class_means, gkl, ikl
from robust_vit.objectives.gradient_norm import gradient_norm
from robust_vit.objectives.hat import hat
from robust_vit.objectives.mart import mart
from robust_vit.objectives.mixed import mixed
from robust_vit.objectives.score import score_adversarial, score_trades
from robust_vit.objectives.standard import standard
from robust_vit.objectives.trades import trades
from robust_vit.typing import Objective

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "standard": standard,  # no attack
    "gradient_norm": gradient_norm,  # no attack; penalises the input gradient
    "adversarial": adversarial,  # Madry; with GradAlign
    "mixed": mixed,  # clean and attacked images
    "trades": trades,
    "mart": mart,
    "hat": hat,  # TRADES and a helper
    "score_adversarial": score_adversarial,  # squared errors of probabilities
    "score_trades": score_trades,
    "ikl": ikl,  # the KL divergence taken apart
    "gkl": gkl,
    "deit_hard": deit_hard,  # no attack; a teacher
    "deit_soft": deit_soft,
    "rslad": rslad,  # a robust teacher
    "ard": ard,
    "ltd": ltd,  # TRADES with the labels of a teacher
}
# Those that call no attack: nothing of one is reported.
WITHOUT_ATTACK: frozenset[str] = frozenset({"standard", "gradient_norm", "deit_hard", "deit_soft"})
# Those that learn from a frozen classifier.
TEACHERS: frozenset[str] = frozenset({"hat", "deit_hard", "deit_soft", "rslad", "ard", "ltd"})
# What those that remember begin with, from the number of classes.
MEMORIES: dict[str, Callable[[int], Any]] = {"ikl": class_means, "gkl": class_means}
# Those whose attack leads away from the model's own prediction: its gradient is 0 at the image itself.
AWAY_FROM_PREDICTION: frozenset[str] = frozenset({"trades", "hat", "score_trades", "ikl", "gkl", "ltd"})


def names() -> list[str]:
    """Lists the registered objectives of classifiers; `encoders.ENCODERS` has those of encoders."""
    return sorted(OBJECTIVES)


def options(name: str) -> dict[str, Any]:
    """Returns {keyword: default} of what `build(name, ...)` takes; defaults are those of the method's paper.

    Raises:
      ValueError: for an unknown name.
    """
    parameters = inspect.signature(lookup("objective.name", name, every())).parameters
    return {keyword: parameter.default for keyword, parameter in parameters.items()}


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

"""What training minimises: each objective is handed the attack and returns one loss per example.

    objective = objectives.build("trades", beta=6.0)
    outcome = objective(forward, statistics, adversary, attack, keys, images, targets, strength)

`forward(images, statistics)` is the training-mode pass whose weights get gradients; `adversary` is the `LogitsFn` that
the attack differentiates (fixed weights). The two are separate because normalisation and drop path may behave
differently in them. `targets` are distributions [B,K], so label smoothing and mixed labels need no special case.

To add one: write a factory in a file of its own and add its line to OBJECTIVES.
"""

from robust_vit.errors import lookup
from robust_vit.objectives.adversarial import adversarial
from robust_vit.objectives.standard import standard
from robust_vit.objectives.trades import trades
from robust_vit.typing import Objective

OBJECTIVES = {"standard": standard, "adversarial": adversarial, "trades": trades}


def names() -> list[str]:
    """Lists the registered objectives."""
    return sorted(OBJECTIVES)


def build(name: str, **keywords) -> Objective:
    """Makes the objective `name`; keywords are those of its factory.

    Raises:
      ValueError: for an unknown name, a misspelt keyword or a value outside its range.
    """
    return lookup("objective.name", name, OBJECTIVES)(**keywords)

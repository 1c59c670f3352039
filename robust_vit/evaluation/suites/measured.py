"""The suites that count accuracies over the whole split: clean, one step, PGD, and PGD against epsilon."""

import functools
from collections.abc import Callable
from typing import Any

from robust_vit import attacks
from robust_vit.evaluation.measure import Measurement
from robust_vit.evaluation.suites import options
from robust_vit.evaluation.suites.context import Context
from robust_vit.typing import Attack

# Multiples of epsilon that the sweep visits. It has to end where no model stands: a robustness that survives an epsilon
# which can turn any image into any other is an artefact of the attack.
SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
SWEEP_STEPS = 20

OPTIONS = {
    "sweep_steps": options.whole(f"PGD steps of the sweep; {SWEEP_STEPS} by default."),
    "sweep_epsilons": options.radii("Radii of the sweep; 0 to 4 times epsilon by default."),
}


def clean(context: Context) -> dict[str, Any]:
    """Accuracy without an adversary."""
    return context.measurer().measure(context.logits_fn, context.batches()).to_dict()


def fgsm(context: Context) -> dict[str, Any]:
    """Accuracy after one full step from the image itself: weak, and told beside PGD because a large gap says much."""
    settings = {"norm": context.norm, "epsilon": context.epsilon}
    return _attacked(context, attacks.fgsm, settings)


def pgd(context: Context) -> dict[str, Any]:
    """Accuracy under PGD with random starts: an example stands only if it stands every restart."""
    settings = {
        "norm": context.norm,
        "epsilon": context.epsilon,
        "steps": context.steps,
        "restarts": context.restarts,
        "step_size": context.step_size_for(context.epsilon, context.steps),
    }
    return _attacked(context, functools.partial(attacks.pgd, keep="success"), settings)


def sweep(context: Context) -> dict[str, Any]:
    """Accuracy against epsilon from 0 to four times the threat model's, with one compiled PGD of traced strength."""
    steps = context.options.get("sweep_steps", SWEEP_STEPS)
    # No Linf ball is larger than the whole box; the other norms have no such bound.
    cap = 1.0 if context.norm == "linf" else float("inf")
    default = sorted({min(multiple * context.epsilon, cap) for multiple in SWEEP})
    epsilons = [float(epsilon) for epsilon in context.options.get("sweep_epsilons", default)]
    largest = max(epsilons)
    settings = {"norm": context.norm, "epsilon": largest, "steps": steps, "restarts": 1}
    # Strength scales the step size with epsilon, so that at the threat model's own epsilon it is the one asked for.
    settings["step_size"] = context.step_size_for(largest, steps)
    measurer = context.measurer(attacks.pgd(**settings, keep="success") if largest else None)
    measured = measurer.sweep(context.differentiated(), context.batches(), [e / (largest or 1.0) for e in epsilons])
    curve = [{"epsilon": e, **_point(m)} for e, m in zip(epsilons, measured)]
    found = {"threat_epsilon": context.epsilon, "reaches_zero": measured[-1].correct == 0}
    notes = {"notes": measured[0].notes} if measured[0].notes else {}
    return settings | {"epsilons": epsilons, "curve": curve} | found | notes


def _attacked(context: Context, factory: Callable[..., Attack], settings: dict[str, Any]) -> dict[str, Any]:
    """Accuracy under an attack, with its settings; a ball of radius 0 needs none, and has no step size to give it."""
    attack = factory(**settings) if context.epsilon else None
    return context.measurer(attack).measure(context.differentiated(), context.batches()).to_dict() | settings


def _point(measured: Measurement) -> dict[str, Any]:
    keep = ("accuracy", "interval", "examples", "correct", "nonfinite")
    return {k: v for k, v in measured.to_dict().items() if k in keep}

"""Named suites of measurements: one dict from name to function, each a function of a `Context` that returns a dict.

A suite's result holds "accuracy", "interval" and "examples" where it has one figure, the threat model in the words
`norm`, `epsilon`, `steps`, `restarts`, `step_size`, and whatever else it wants to tell, as JSON. A new suite is a
function and a line in `SUITES`; a table of its own is a function and a line in `record.DETAILS`.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from robust_vit import attacks, errors, parallel
from robust_vit.evaluation import fingerprint, masking, record
from robust_vit.evaluation.measure import Batch, Measurement, Measurer, padded
from robust_vit.evaluation.suites import autoattack as autoattack_suite
from robust_vit.typing import Attack, LogitsFn, Variables

# Multiples of epsilon that the sweep visits. It has to end where no model stands: a robustness that survives an epsilon
# which can turn any image into any other is an artefact of the attack.
SWEEP = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
SWEEP_STEPS = 20


@dataclasses.dataclass
class Context:
    """What suites measure, and how.

    Attributes:
      logits_fn: the classifier, a pytree that carries its weights.
      batches: gives the whole split anew at each call, as this host's slices of masked batches.
      norm: "linf", "l2" or "l1".
      epsilon: radius of the ball, a fraction of the [0,1] pixel range.
      steps: of PGD.
      restarts: of PGD.
      step_size: of PGD; None takes 2.5 epsilon / steps (Madry et al.), so that the walk can cross the ball.
      seed: of the attacks' random starts.
      mesh: devices; all by default.
      module, variables: the model behind `logits_fn`, where there is one.
      workdir: where a suite may keep files of its own (ledgers, images); None keeps nothing.
      class_names: for tables and pictures.
      options: what single suites take besides; each documents its own, and an unknown one is an error at the command.
      say: takes one line of progress.
    """

    logits_fn: LogitsFn
    batches: Callable[[], Iterable[Batch]]
    norm: str
    epsilon: float
    steps: int = 50
    restarts: int = 5
    step_size: float | None = None
    seed: int = 0
    mesh: Mesh | None = None
    module: Any = None
    variables: Variables | None = None
    workdir: pathlib.Path | None = None
    class_names: Sequence[str] | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    say: Callable[[str], None] = lambda line: None

    def step_size_for(self, epsilon: float, steps: int) -> float:
        """The step size of a PGD of so many steps in a ball of so large a radius."""
        scale = epsilon / self.epsilon if self.epsilon else 1.0
        return 2.5 * epsilon / steps if self.step_size is None else self.step_size * scale

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The split in memory, without padding: images [N,H,W,C] as stored, labels [N], dataset indices [N]."""
        parts = [{k: v[b["mask"]] for k, v in b.items()} for b in padded(self.batches())]
        return tuple(np.concatenate([part[name] for part in parts]) for name in ("image", "label", "index"))

    def measurer(self, attack: Any = None) -> Measurer:
        """A Measurer on this context's devices and seed."""
        return Measurer(attack, self.mesh, self.seed)


def clean(context: Context) -> dict[str, Any]:
    """Accuracy without an adversary."""
    return context.measurer().measure(context.logits_fn, context.batches()).to_dict()


def fgsm(context: Context) -> dict[str, Any]:
    """Accuracy after one full step from the image itself: weak, and told beside PGD because a large gap says much."""
    settings = {"norm": context.norm, "epsilon": context.epsilon}
    return _under(context, attacks.fgsm, settings)


def pgd(context: Context) -> dict[str, Any]:
    """Accuracy under PGD with random starts: an example stands only if it stands every restart."""
    settings = {
        "norm": context.norm,
        "epsilon": context.epsilon,
        "steps": context.steps,
        "restarts": context.restarts,
        "step_size": context.step_size_for(context.epsilon, context.steps),
    }
    return _under(context, functools.partial(attacks.pgd, keep="success"), settings)


def sweep(context: Context) -> dict[str, Any]:
    """Accuracy against epsilon from 0 to four times the threat model's, with one compiled PGD of traced strength.

    Options: `sweep_steps`, `sweep_epsilons` (a sequence of radii).
    """
    steps = int(context.options.get("sweep_steps", SWEEP_STEPS))
    # No Linf ball is larger than the whole box; the other norms have no such bound.
    cap = 1.0 if context.norm == "linf" else float("inf")
    default = sorted({min(multiple * context.epsilon, cap) for multiple in SWEEP})
    epsilons = [float(e) for e in context.options.get("sweep_epsilons", default)]
    largest = max(epsilons)
    errors.check("sweep_epsilons", epsilons, min(epsilons) >= 0, "at least 0")
    settings = {"norm": context.norm, "epsilon": largest, "steps": steps, "restarts": 1}
    settings["step_size"] = context.step_size_for(largest, steps) if context.step_size is None else context.step_size
    measurer = context.measurer(attacks.pgd(**settings, keep="success") if largest else None)
    measured = measurer.sweep(context.logits_fn, context.batches(), [e / (largest or 1.0) for e in epsilons])
    curve = [{"epsilon": e, **_point(m)} for e, m in zip(epsilons, measured)]
    told = {"threat_epsilon": context.epsilon, "reaches_zero": measured[-1].correct == 0}
    return settings | {"epsilons": epsilons, "curve": curve} | told


# The suites by name. Others import their function and add one line.
SUITES: dict[str, Callable[[Context], dict[str, Any]]] = {
    "clean": clean,
    "fgsm": fgsm,
    "pgd": pgd,
    "sweep": sweep,
    "quick": autoattack_suite.quick,
    "autoattack": autoattack_suite.full,
    "masking": masking.suite,
}


def _floats(text: str) -> list[float]:
    return [float(part) for part in text.split("/")]


# What single suites take besides, and how it is read from the command line: a name, and a function of the text.
OPTIONS: dict[str, Callable[[str], Any]] = {
    "sweep_steps": int,
    "sweep_epsilons": _floats,  # 0/0.05/0.1
    "autoattack_version": str,
    "autoattack_points": int,
    "autoattack_budget": float,
    "autoattack_batch_size": int,
    "autoattack_tile": int,
    "autoattack_dtype": str,
    "masking_points": int,
    "masking_queries": int,
}


def read_options(words: Iterable[str]) -> dict[str, Any]:
    """Reads `name=value` words.

    Raises:
      ValueError: for an unknown name, with the nearest known one, or a value that is not of its kind.
    """
    options = {}
    for word in words:
        name, _, text = word.partition("=")
        read = errors.lookup("option", name, OPTIONS)
        try:
            options[name] = read(text)
        except ValueError as error:
            raise ValueError(f"option {name} = {text!r}: cannot be read ({error})") from None
    return options


def parse(names: str | Iterable[str]) -> list[str]:
    """Reads `clean,fgsm,pgd` (or a list), checks every name and drops repeats.

    Raises:
      ValueError: for an unknown or an empty name, with the nearest known one.
    """
    names = names.split(",") if isinstance(names, str) else list(names)
    names = list(dict.fromkeys(name.strip() for name in names))
    for name in names:
        errors.lookup("suite", name, SUITES)
    return names


def run_suites(
    names: str | Iterable[str], context: Context, done: Callable[[str, dict[str, Any]], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Runs suites in the order given.

    Args:
      names: of `SUITES`, as a comma-separated string or a list; all are checked before the first runs.
      context: what to measure.
      done: called with each suite's name and entry as soon as it is known, so that a kill loses one suite at most.

    Returns:
      {name: entry}; each entry also says under "measured" when, how long, by which command and on what it ran.
    """
    results: dict[str, dict[str, Any]] = {}
    for name in parse(names):
        start = time.perf_counter()
        entry = SUITES[name](context)
        seconds = time.perf_counter() - start
        results[name] = entry | {"seed": context.seed, "measured": record.stamp(seconds)}
        figure = "" if entry.get("accuracy") is None else f"accuracy {entry['accuracy']:.2%}, "
        context.say(f"{name}: {figure}{seconds:.1f} s")
        if done is not None:
            done(name, results[name])
    return results


def evaluate(
    names: str | Iterable[str],
    context: Context,
    path: str | pathlib.Path | None,
    *,
    split: str = "test",
    step: int | None = None,
    **weights: Any,
) -> dict[str, Any]:
    """Runs suites and keeps a result file up to date after each.

    Args:
      names: of `SUITES`.
      context: what to measure.
      path: of result.json, read before anything is compiled and merged with; None keeps no file.
      split: which examples these are; part of the result's identity.
      step: training step of the weights.
      **weights: more to say about the weights ("raw" or "ema", their folder).

    Returns:
      The content of result.json: see `record`.
    """
    names = parse(names)
    known = record.read(path) if path else {}
    first = next(iter(context.batches()))
    hashed = identify(context.logits_fn, first["image"].shape[1:])
    head = {"weights": {"step": step, "hash": hashed, **weights}, "split": split, **record.environment()}

    def keep(name: str, entry: dict[str, Any]) -> None:
        nonlocal known
        known = record.merge(record.read(path) if path else known, head | {name: entry})
        if path and parallel.is_main():
            record.write(path, known)

    run_suites(names, context, keep)
    return known


def identify(logits_fn: LogitsFn, image_shape: Sequence[int]) -> str:
    """The hash of a classifier: of its weights and of what it computes with them."""
    return fingerprint.identify(logits_fn, jax.ShapeDtypeStruct((1, *image_shape), "float32"))


def _under(context: Context, factory: Callable[..., Attack], settings: dict[str, Any]) -> dict[str, Any]:
    """Accuracy under an attack, with its settings; a ball of radius 0 needs none, and has no step size to give it."""
    attack = factory(**settings) if context.epsilon else None
    return context.measurer(attack).measure(context.logits_fn, context.batches()).to_dict() | settings


def _point(measured: Measurement) -> dict[str, Any]:
    keep = ("accuracy", "interval", "examples", "correct", "nonfinite")
    return {k: v for k, v in measured.to_dict().items() if k in keep}

"""Named suites of measurements: one dict from name to function, each a function of a `Context` that returns a dict.

A suite's result holds "accuracy", "interval" and "examples" where it has one figure, the threat model in the words
`norm`, `epsilon`, `steps`, `restarts`, `step_size`, and whatever else it wants to tell, as JSON. A new suite is a
function in a file here, with its options beside it, and a line in `SUITES`; a table of its own is a function and a line
in `tables.DETAILS`; what it measures (and not: is told to do) is named in `record.FIGURES`.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from robust_vit import errors, parallel
from robust_vit.evaluation import callables, canary, measure, record
from robust_vit.evaluation.suites import autoattack, blackbox, masking, measured, minimal
from robust_vit.evaluation.suites.context import ADAPTIVE, Context, identify
from robust_vit.evaluation.suites.options import Option
from robust_vit.pixels import as_float

__all__ = ["ADAPTIVE", "OPTIONS", "SUITES", "Context", "evaluate", "identify", "parse", "read_options", "run_suites"]

Suite = Callable[[Context], dict[str, Any]]

SUITES: dict[str, Suite] = {
    "clean": measured.clean,
    "fgsm": measured.fgsm,
    "pgd": measured.pgd,
    "sweep": measured.sweep,
    "quick": autoattack.quick,
    "fast": autoattack.fast,
    "autoattack": autoattack.full,
    "masking": masking.suite,
    "minimal": minimal.suite,
    "blackbox": blackbox.suite,
}

# What single suites take besides.
OWN_CANARY = ("autoattack", "fast", "quick")  # they compile programs of their own, and compare those

OPTIONS: dict[str, Option] = {
    **measured.OPTIONS,
    **autoattack.OPTIONS,
    **masking.OPTIONS,
    **minimal.OPTIONS,
    **blackbox.OPTIONS,
}

# What is asked of the context before anything compiles.
CHECKS: dict[str, Callable[[Context], None]] = {
    "quick": autoattack.check_threat,
    "fast": autoattack.check_threat,
    "autoattack": autoattack.check,
    "masking": masking.check,
    "minimal": minimal.check,
    "blackbox": blackbox.check,
}

# Suites that need no gradient (in this context), and so measure any NumPy function.
GRADIENT_FREE: dict[str, Callable[[Context], bool]] = {
    "clean": lambda context: True,
    "autoattack": autoattack.gradient_free,
    "blackbox": lambda context: True,
}

# Suites whose attacks differentiate another form of the classifier where `Context.adaptive` asks for it.
ADAPTED = ("fgsm", "pgd", "sweep", "quick", "fast", "autoattack", "minimal")


def read_options(words: Iterable[str]) -> dict[str, Any]:
    """Reads `name=value` words.

    Raises:
      ValueError: for an unknown name, with the nearest known one, or a value that is not of its kind.
    """
    return checked_options({name: text for name, _, text in (word.partition("=") for word in words)})


def checked_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Reads options, texts or values.

    Raises:
      ValueError: as `read_options`.
    """
    return {name: errors.lookup("option", name, OPTIONS)(name, value) for name, value in given.items()}


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


def checked(names: Iterable[str], context: Context) -> Context:
    """The context as suites take it, after everything that can be told before something compiles.

    The classifier becomes a pytree; one that JAX cannot trace is called on the host, if no suite needs its gradient.

    Raises:
      ValueError: in one line, for options, a threat model, images, labels or logits that the suites cannot measure.
    """
    context = dataclasses.replace(context, options=checked_options(context.options))
    for name in names:
        CHECKS.get(name, lambda context: None)(context)
    first = next(measure.padded(context.batches()), None)
    errors.check("batches", "empty", first is not None, "at least one batch: there is nothing to measure")
    shape, batch = first["image"].shape[1:], max(2, len(first["label"]))
    try:
        classes = callables.check_logits(context.logits_fn, shape, batch, context.num_classes)
    except ValueError:
        free = all(name in GRADIENT_FREE and GRADIENT_FREE[name](context) for name in names)
        if not free or context.adaptive or callables.is_traceable(context.logits_fn, shape, batch):
            raise
        context.logits_fn = _hosted(context, first)
        classes = callables.check_logits(context.logits_fn, shape, batch, context.num_classes)
    measure.check_batch(first, classes)
    return context


def _hosted(context: Context, batch: Mapping[str, np.ndarray]) -> Any:
    """A NumPy function as a classifier; how many classes it has is known by calling it once."""
    function, images = context.logits_fn, as_float(batch["image"])
    try:
        logits = np.asarray(function(images))
    except Exception as error:  # the function is the user's: it may raise anything
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"logits_fn: is not traceable by JAX, and fails on NumPy images with {cause}") from error
    errors.check("logits.shape", logits.shape, logits.ndim == 2, f"({len(images)}, K), one row an image")
    callables.check_array(logits, (len(images), logits.shape[1]))
    context.say("logits_fn is not traceable by JAX: it is called on the host, and no attack may ask for its gradient")
    return callables.on_host(function, logits.shape[1])


def run_suites(
    names: str | Iterable[str], context: Context, done: Callable[[str, dict[str, Any]], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Runs suites in the order given.

    Args:
      names: of `SUITES`, as a comma-separated string or a list; all are checked before the first runs.
      context: what to measure.
      done: called with each suite's name and entry as soon as it is known, so that a kill loses one suite at most.

    Returns:
      {name: entry}; each entry also says under "measured" when, how long, by which command and on what it ran. With
      `context.adaptive`, suites that attack are named "pgd:straight_through", so that they never pose as plain ones.
    """
    names = parse(names)
    return _run(names, checked(names, context), done)


def _run(names: list[str], context: Context, done: Callable[[str, dict[str, Any]], None] | None) -> dict[str, Any]:
    results: dict[str, dict[str, Any]] = {}
    found = _canary(context) if any(name not in OWN_CANARY for name in names) else {}
    for name in names:
        start = time.perf_counter()
        entry = SUITES[name](context)
        seconds = time.perf_counter() - start
        entry = entry | {"seed": context.seed, "measured": record.stamp(seconds) | found}
        if context.adaptive and name in ADAPTED:
            name, entry = f"{name}:{context.adaptive}", entry | {"adaptive": context.adaptive}
        results[name] = entry
        figure = "" if entry.get("accuracy") is None else f"accuracy {entry['accuracy']:.2%}, "
        context.say(f"{name}: {figure}{seconds:.1f} s")
        if done is not None:
            done(name, results[name])
    return results


def _canary(context: Context) -> dict[str, Any]:
    """Compares the compiled classifier with the plain one, once for all suites, at the size of their batches."""
    images = next(measure.padded(context.batches()))["image"]
    mesh = context.mesh or parallel.mesh()
    local = jax.process_count() == 1 and len(images) % mesh.size == 0
    found = canary.check(context.logits_fn, images, slots=len(images), mesh=mesh if local and mesh.size > 1 else None)
    return {"canary": found.to_dict()}


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
    context = checked(names, context)
    head = record.head({"step": step, "hash": context.fingerprint, **weights}, split, context.class_names)

    def keep(name: str, entry: dict[str, Any]) -> None:
        nonlocal known
        known = record.update(path, known, head | {name: entry})

    _run(names, context, keep)
    return known

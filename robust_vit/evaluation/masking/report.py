"""The masking report: is this robustness real, or did the attack only lose its gradients?

    report = masking.report(logits_fn, images, labels, norm="linf", epsilon=8 / 255)
    print(report.table())
    report.warnings        # () for an honest model, however weak

A few hundred points and about ten compiled programs: a static check of the traced program, finite differences, a PGD
that tells its loss at every step under two losses, one step, noise, a black-box attack, optionally a transfer, and a
sweep of epsilon that must end at 0 %. Where the program holds what hides gradients, the walk is repeated through it
(`attacks.straight_through`). The rules and their thresholds are in `findings.py` and `failures.py`.

Reference: Athalye et al. 2018, https://arxiv.org/abs/1802.00420; Carlini et al. 2019, https://arxiv.org/abs/1902.06705;
  Pintor et al. 2022 (indicators of attack failure), https://arxiv.org/abs/2106.09947; the checks of AutoAttack,
  https://arxiv.org/abs/2003.01690
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import errors
from robust_vit.attacks import norms
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.evaluation.masking import checks, findings, probes
from robust_vit.evaluation.masking.findings import Finding
from robust_vit.threat import Threat, resolve
from robust_vit.typing import Array, LogitsFn


@dataclasses.dataclass(frozen=True)
class Report:
    """All findings on one model and one threat model.

    Attributes:
      findings: in the order asked.
      norm, epsilon, points: what was attacked, and how many points.
      clean_accuracy: over all points; the findings speak of the correct ones.
      robust_accuracy: over all points, under everything the report tried; an upper bound, not an evaluation.
    """

    findings: tuple[Finding, ...]
    norm: str
    epsilon: float
    points: int
    clean_accuracy: float
    robust_accuracy: float

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that speak against the robustness."""
        return tuple(found for found in self.findings if found.verdict == findings.WARNING)

    @property
    def ok(self) -> bool:
        """True if nothing speaks against the robustness."""
        return not self.warnings

    def __getitem__(self, name: str) -> Finding:
        return errors.lookup("finding", name, {found.name: found for found in self.findings})

    def table(self) -> str:
        """The report as text: a line a finding, and under each warning the rule and what to do."""
        head = (
            f"masking report: {self.norm} {self.epsilon:.4g}, {self.points} points, clean"
            f" {findings.percent(self.clean_accuracy)}, robust at most {findings.percent(self.robust_accuracy)}"
        )
        lines = [head]
        for found in self.findings:
            lines.append(f"{found.verdict:<8} {found.name:<24} {found.saw}")
            if found.verdict == findings.WARNING:
                lines += [f"{'':<33} rule: {found.threshold}", f"{'':<33} do:   {found.advice}"]
        names = ", ".join(found.name for found in self.warnings)
        lines.append(f"{len(self.warnings)} warnings: {names}" if names else "no sign of masked gradients")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        return dataclasses.asdict(self) | {"warnings": [found.name for found in self.warnings], "ok": self.ok}


def report(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    norm: str | None = None,
    epsilon: float | None = None,
    threat: Threat | str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    steps: int = 30,
    queries: int = 500,
    transfer_from: LogitsFn | None = None,
    indices: Array | None = None,
) -> Report:
    """Looks for signs that a robust accuracy is owed to masked gradients.

    Args:
      logits_fn: images [B,H,W,C] in [0,1] -> logits [B,K].
      images: [N,H,W,C] floats in [0,1]; 64 to 256 points do.
      labels: [N] int.
      norm: "linf", "l2" or "l1".
      epsilon: radius of the ball, in units of the [0,1] pixel range.
      threat: a `Threat` or its text, "linf-8/255", in place of norm and epsilon.
      seed: of every draw.
      batch_size: points in one compiled call.
      steps: of the gradient walks.
      queries: of the black-box attack.
      transfer_from: another classifier of the same images, such as the undefended model; its adversarial images are
        tried on this one.
      indices: [N] dataset indices, which name each point's draws; 0 to N-1 by default.

    Returns:
      A `Report`; its `warnings` are empty for an honest model, weak or strong.

    Raises:
      ValueError: for a bad argument, outputs that are no real numbers [B,K], or if no point is classified correctly.
    """
    norm, epsilon = resolve(threat, norm, epsilon)
    images, labels = _checked(images, labels, norm, epsilon, batch_size, steps, queries)
    indices = np.arange(len(labels)) if indices is None else np.asarray(indices)
    logits_fn = _real_logits(as_logits_fn(logits_fn), images[:batch_size])
    everything = checks.ending(probes.Sample(logits_fn, images, labels, indices, seed, batch_size))
    clean = everything.run(jax.jit(probes.look), None)
    kept = np.flatnonzero(~clean["wrong"] & clean["finite"])
    errors.check("correct points", len(kept), len(kept) > 0, "above 0: the model is right at no point")
    points = everything.at(kept)
    found, precision = checks.program(points, logits_fn)
    found += checks.endless_loop(points, logits_fn, norm, epsilon)
    outputs = [findings.finite_logits(clean["finite"]), findings.probabilities(clean["total"], clean["least"])]
    found = [*outputs, *found, *checks.repeats(points, precision)]
    trouble = probes.has_gradient(points.logits_fn, jnp.asarray(points.images[:1]))
    margin = clean["margin"][kept]
    more, broken = [findings.no_gradient(trouble)], np.zeros(len(points), bool)
    if not trouble:
        constant = len(np.unique(clean["class"])) == 1
        more, broken = checks.first_order(points, margin, precision, norm, epsilon, steps, constant)
    through, by_through = checks.with_straight_through(points, broken, norm, epsilon, steps)
    found += [*more, through]
    more, others = checks.without_gradient(points, margin, broken, norm, epsilon, steps, queries, transfer_from)
    count = len(labels)
    robust = np.sum(~(broken | by_through | others)) / count
    return Report((*found, *more), norm, float(epsilon), count, len(kept) / count, float(robust))


def _real_logits(logits_fn: LogitsFn, images: np.ndarray) -> LogitsFn:
    """Checks the shape of the logits; integers, which have no gradient, are reported on as floats."""
    shape = jax.ShapeDtypeStruct(images.shape, images.dtype)
    logits = jax.eval_shape(lambda f, x: f(x), logits_fn, shape)
    kind = getattr(logits, "dtype", None)
    told = f"{kind}{list(logits.shape)}" if kind is not None else type(logits).__name__
    fits = kind is not None and logits.ndim == 2 and logits.shape[0] == len(images) and logits.shape[1] > 1
    errors.check("logits", told, fits, f"real numbers [B,K], for {len(images)} images [{len(images)},K] with K above 1")
    errors.check("logits", told, not jnp.issubdtype(kind, jnp.complexfloating), "real numbers")
    return logits_fn if jnp.issubdtype(kind, jnp.floating) else jax.tree_util.Partial(_as_float, logits_fn)


def _as_float(logits_fn: LogitsFn, images: Array) -> Array:
    return logits_fn(images).astype(jnp.float32)


def _checked(images: Array, labels: Array, norm: str, epsilon: float, *counts: int) -> tuple[np.ndarray, np.ndarray]:
    errors.lookup("norm", norm, norms.BALLS)
    largest = checks.whole_box(norm, images)
    errors.check("epsilon", epsilon, 0 < epsilon <= largest, f"above 0 and at most {largest:g} for {norm}")
    for name, count in zip(("batch_size", "steps", "queries"), counts, strict=True):
        errors.check(name, count, count >= 1, "at least 1")
    images, labels = np.asarray(images), np.asarray(labels)
    floats = images.ndim == 4 and np.issubdtype(images.dtype, np.floating)
    errors.check("images", f"{images.dtype}{list(images.shape)}", floats, "floats in [0,1] of shape [N,H,W,C]")
    errors.check("labels", list(labels.shape), labels.shape == images.shape[:1], f"of shape [{len(images)}]")
    return images, labels.astype(np.int32)

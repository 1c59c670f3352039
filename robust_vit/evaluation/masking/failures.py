"""What the masking report says of how attacks fared: did one fail where something simpler did not, did it converge?

Weak is not masked: a model that falls to the attack is no finding. Indicators 2 to 6 are those of Pintor et al. 2022,
https://arxiv.org/abs/2106.09947.
"""

from collections.abc import Sequence

import numpy as np

from robust_vit.evaluation.masking.findings import FEW, OK, WARNING, Finding, finding, percent, skipped

# Thresholds. A share is a fraction of the points that are classified correctly without an attack.
ONLY = 0.02  # share of points that the weaker attack breaks and the stronger does not
LOSS_GAP = 0.10  # robust accuracy under cross-entropy minus that under a loss without softmax
RESIDUAL = 0.02  # accuracy that may be left where the ball is the whole box
SPAN = 0.05  # what the best loss may still gain in the last third, as a fraction of all it gained (Pintor et al.)
UNFINISHED = 0.3  # share of surviving points whose loss still moves
DROP = 0.1  # how far the mean loss may fall below what it had reached, as a fraction of all it gained
VARIABILITY = 0.5  # mean relative change of the margin under noise of half the radius, at surviving points


def weaker_attack_wins(name: str, weaker: str, wins: np.ndarray, loses: np.ndarray, advice: str) -> Finding:
    """Compares two attacks point by point: the weaker may break only what the stronger breaks.

    Args:
      name: of the finding.
      weaker: of the attack, in words.
      wins, loses: [N] bool, broken by the weaker and by the stronger attack.
    """
    only = np.mean(wins & ~loses)
    return finding(
        name,
        only > ONLY and np.sum(wins & ~loses) >= 2,
        f"{weaker} leaves {percent(1 - np.mean(wins))} robust, many gradient steps {percent(1 - np.mean(loses))};"
        f" {percent(only)} of points fall to it alone",
        f"at most {percent(ONLY)} of points fall to the weaker attack alone",
        advice,
        weaker=1 - np.mean(wins),
        stronger=1 - np.mean(loses),
        only=only,
    )


def straight_through(kinds: Sequence[str], without: np.ndarray, through: np.ndarray) -> Finding:
    """Compares the attack with itself where gradients pass what hides them (BPDA).

    Args:
      kinds: of the operations that were passed through.
      without, through: [N] broken by the walks on the program as it is, and on its straight-through version.
    """
    only = np.mean(through & ~without)
    return finding(
        "straight_through",
        only > ONLY and np.sum(through & ~without) >= 2,
        f"robust accuracy {percent(1 - np.mean(without))} as it is, {percent(1 - np.mean(through | without))} with"
        f" gradients passed through {', '.join(kinds)}",
        f"at most {percent(ONLY)} of points fall only where gradients pass",
        "report the accuracy under adaptive attacks: attacks.straight_through(logits_fn), evaluate"
        " --adaptive=straight_through",
        without=1 - np.mean(without),
        through=1 - np.mean(through | without),
        only=only,
    )


def noise(wrong: np.ndarray, attacked: np.ndarray) -> Finding:
    """Random noise of the same size must do far less than the attack.

    Args:
      wrong: [R,N] under R draws of noise.
      attacked: [N] under the attack.
    """
    only = np.mean(np.any(wrong, axis=0) & ~attacked)
    fall, attack_fall = np.mean(wrong), np.mean(attacked)
    as_good = fall > ONLY and attack_fall < 2 * fall and attack_fall < 0.95
    return finding(
        "noise",
        (only > ONLY and np.sum(np.any(wrong, axis=0) & ~attacked) >= 2) or as_good,
        f"noise costs {percent(fall)} of points a draw, the attack {percent(attack_fall)}; {percent(only)} fall to one"
        f" of {len(wrong)} draws alone",
        f"at most {percent(ONLY)} fall to noise alone, and the attack costs at least twice as much as a draw",
        "an attack no better than noise has no useful direction: its gradients are masked",
        noise=fall,
        attack=attack_fall,
        only=only,
    )


def loss_gap(name: str, other: str, cross_entropy: np.ndarray, second: np.ndarray) -> Finding:
    """Robust accuracy under cross-entropy against that under a loss that no softmax can saturate."""
    gap = np.mean(second) - np.mean(cross_entropy)
    return finding(
        name,
        gap > LOSS_GAP,
        f"cross-entropy leaves {percent(1 - np.mean(cross_entropy))} robust, {other} {percent(1 - np.mean(second))}",
        f"cross-entropy leaves at most {100 * LOSS_GAP:.0f} points more",
        "the cross-entropy is saturated: report the accuracy under DLR, margin and targeted losses",
        cross_entropy=1 - np.mean(cross_entropy),
        second=1 - np.mean(second),
    )


def epsilon_sweep(epsilons: Sequence[float], accuracy: Sequence[float]) -> Finding:
    """Indicator 6 of Pintor et al.: accuracy must fall with epsilon and reach 0 % where the ball is the whole box."""
    accuracy = np.asarray(accuracy)
    rise = float(np.max(np.maximum.accumulate(accuracy[::-1])[::-1] - accuracy))
    curve = ", ".join(f"{epsilon:.3g}: {100 * a:.0f}" for epsilon, a in zip(epsilons, accuracy))
    return Finding(
        "epsilon_sweep",
        WARNING if accuracy[-1] > RESIDUAL or rise > 0.05 else OK,
        f"robust accuracy in % by epsilon: {curve}",
        f"at most {percent(RESIDUAL)} is left at the largest epsilon, and no rise above 5 points",
        "an attack without a bound cannot fail on an honest model: the gradients are masked",
        {"epsilons": [float(e) for e in epsilons], "accuracy": [round(float(a), 6) for a in accuracy], "rise": rise},
    )


def constant_prediction() -> Finding:
    """In place of the sweep, where no perturbation may change what was never decided by the image."""
    return skipped("epsilon_sweep", "the model gives every point the same class: nothing to attack", "train the model")


def loss_against_steps(loss: np.ndarray) -> Finding:
    """The mean loss must climb, and stay.

    Args:
      loss: [T+1,N] of one walk, at points correct without an attack.
    """
    mean = np.mean(np.minimum(loss, 1e6), axis=1, dtype=np.float64)
    best = np.maximum.accumulate(mean)
    gained = best[-1] - mean[0]
    flat = not gained > 1e-6 * max(1.0, abs(mean[0]))
    fall = 0.0 if flat else float(np.max(best - mean) / gained)
    return finding(
        "loss_against_steps",
        flat or fall > DROP,
        f"mean loss {mean[0]:.3g} at the start, {mean[len(mean) // 2]:.3g} half way, {mean[-1]:.3g} at the end; largest"
        f" fall {percent(fall)} of the gain",
        f"it climbs, and falls by at most {percent(DROP)} of what it gained",
        "the steps do not follow the loss: gradients are wrong or the step is too large",
        start=mean[0],
        end=mean[-1],
        fall=fall,
    )


def silent_success(wrong: np.ndarray) -> Finding:
    """Indicator 3: points misclassified on the way and correct at the end. [T+1,N] bool of one walk."""
    share = np.mean(np.any(wrong, axis=0) & ~wrong[-1])
    return finding(
        "silent_success",
        share > 0.05,
        f"{percent(share)} of points were broken on the way and are correct at the last step",
        "at most 5.0 % of points",
        "keep the best iterate (keep='success'); if it is kept, the model is random or its loss is not the error",
        share=share,
    )


def incomplete_optimisation(loss: np.ndarray, broken: np.ndarray) -> Finding:
    """Indicator 4: where the attack failed, had its loss come to rest?

    Args:
      loss: [T+1,N].
      broken: [N].
    """
    name = "incomplete_optimisation"
    loss = loss[:, ~broken].astype(np.float64)
    if loss.shape[1] < FEW:
        return skipped(name, f"only {loss.shape[1]} points survive the attack")
    best = np.maximum.accumulate(loss, axis=0)
    gained = best[-1] - loss.min(axis=0)
    last = best[-1] - best[-min(10, len(best))]
    moving = np.mean(last > SPAN * np.maximum(gained, 1e-12))
    return finding(
        name,
        moving > UNFINISHED,
        f"at {percent(moving)} of surviving points the loss still gains more than {percent(SPAN)} in the last 10 steps",
        f"at most {percent(UNFINISHED)} of surviving points",
        "attack with more steps before believing the figure",
        share=moving,
    )


def unstable_predictions(margin: np.ndarray, noisy: np.ndarray, broken: np.ndarray) -> Finding:
    """Indicator 2: at surviving points, how much does noise of half the radius move the margin?

    Args:
      margin: [N] of the clean images.
      noisy: [R,N] under noise.
      broken: [N].
    """
    name = "unstable_predictions"
    if np.sum(~broken) < FEW:
        return skipped(name, f"only {np.sum(~broken)} points survive the attack")
    margin, noisy = margin[~broken], noisy[:, ~broken]
    change = np.mean(np.minimum(np.abs(noisy - margin) / np.maximum(np.abs(margin), 1e-12), 1.0))
    return finding(
        name,
        change > VARIABILITY,
        f"noise of half the radius changes the margin of surviving points by {percent(change)}",
        f"at most {percent(VARIABILITY)}",
        "the loss surface is noisy: average gradients over draws or over a neighbourhood (EOT, smoothing)",
        change=change,
    )

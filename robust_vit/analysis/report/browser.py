"""The example browser's data: for each example its images, logits, margins and its story, as JSON.

Class names and sentences are plain text here; the script of the page writes them as text and never as HTML.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from robust_vit.analysis.report import pictures
from robust_vit.analysis.walks import Walk
from robust_vit.evaluation.record import pixels

SHOWN = 10  # logits told of an example, where there are more classes

FLIPPED, SURVIVED, WRONG = "flipped", "survived", "wrong"


def data(
    walk: Walk,
    names: Sequence[str],
    stories: Mapping[int, str],
    attention: tuple[np.ndarray, np.ndarray] | None = None,
    budget: int = pictures.BUDGET,
) -> dict[str, Any]:
    """What the script of the page is given.

    Args:
      walk: the examples.
      names: K class names.
      stories: {dataset index: a sentence}.
      attention: maps [N,h,w] on clean and on adversarial images, where the model has them.
      budget: bytes of the images.

    Returns:
      {"classes", "norm", "epsilon", "attack", "kind", "width", "height", "grey", "grid", "examples"}; of an example:
      "i" index, "y" label, "s" state, "t" story, "x" and "d" image and change, "l" the change's largest value, "p"
      predictions clean and attacked, "c" their confidences, "m" margins, "z" rows [class, clean logit, attacked logit],
      "a" attention on both.
    """
    made = pictures.coded(walk.images, walk.adversarial, budget)
    maps = [pictures.grids(part) for part in attention] if attention is not None else None
    clean, attacked = walk.clean_logits, walk.adversarial_logits
    margins = walk.margins()
    states = np.where(~walk.clean_right, WRONG, np.where(walk.standing, SURVIVED, FLIPPED))
    predictions = [z.argmax(axis=1) for z in (clean, attacked)]
    confidences = [_confidence(z) for z in (clean, attacked)]
    examples = []
    for n, index in enumerate(walk.indices):
        example = {
            "i": int(index),
            "y": int(walk.labels[n]),
            "s": str(states[n]),
            "t": stories.get(int(index), ""),
            "x": made.images[n],
            "d": made.changes[n],
            "l": _short(made.limits[n]),
            "p": [int(p[n]) for p in predictions],
            "c": [_short(c[n]) for c in confidences],
            "m": [_short(m[n]) for m in margins],
            "z": _logits(clean[n], attacked[n], int(walk.labels[n])),
        }
        examples.append(example | ({"a": [part[n] for part in maps]} if maps else {}))
    return {
        "classes": [str(name) for name in names],
        "norm": walk.norm,
        "epsilon": pixels(walk.epsilon),
        "attack": walk.attack,
        "kind": made.kind,
        "width": made.width,
        "height": made.height,
        "grey": walk.images.shape[-1] < 3,
        "grid": list(attention[0].shape[1:]) if attention is not None else None,
        "examples": examples,
    }


def _logits(clean: np.ndarray, attacked: np.ndarray, label: int) -> list[list[float]]:
    """Rows [class, clean logit, attacked logit]: of all classes, or of the label and the largest of either."""
    if len(clean) <= SHOWN:
        chosen = np.arange(len(clean))
    else:
        half = SHOWN // 2
        largest = [k for z in (attacked, clean) for k in np.argsort(-z, kind="stable")[:half]]
        chosen = np.sort(np.fromiter(dict.fromkeys([label, *largest]), int)[:SHOWN])
    return [[int(k), _short(clean[k]), _short(attacked[k])] for k in chosen]


def _confidence(logits: np.ndarray) -> np.ndarray:
    """[N] the softmax of the largest logit."""
    z = np.asarray(logits, np.float64)
    return 1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1)


def _short(value: float) -> float | None:
    """Four digits are all that a page shows; JSON has no NaN."""
    return float(f"{value:.4g}") if np.isfinite(value) else None

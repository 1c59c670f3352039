"""The examples of a page: attacked once, kept in `report/`, used again while classifier, data and attack are the same.

`examples.npz` holds a walk of PGD, from which curves are drawn; `shown.npz` what the browser shows of the same
examples: where AutoAttack broke one, the image by which it did, and attention where the model has it.
"""

import dataclasses
import functools
import io
import json
import pathlib
import zipfile
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from robust_vit import provenance
from robust_vit.analysis import attention, walks
from robust_vit.analysis.report import charts, content, stories
from robust_vit.attacks import losses
from robust_vit.evaluation import record
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.evaluation.measure import Batch, padded
from robust_vit.evaluation.suites.context import Context
from robust_vit.typing import Array, LogitsFn

EXAMPLES, SHOWN = "examples.npz", "shown.npz"
ATTENTION = ("attention_clean", "attention_adversarial")
FEW = 32  # images whose attention, of all blocks, is in memory at once


class Gallery(NamedTuple):
    """Examples as the page shows them.

    Attributes:
      walk: of PGD, with the worst images known, which AutoAttack may have found, and their logits.
      attention: maps [N,h,w] on clean and adversarial images; None where the model has none.
      split: which examples these are.
    """

    walk: walks.Walk
    attention: tuple[np.ndarray, np.ndarray] | None
    split: str


def refresh(own: pathlib.Path, context: Context, batches: Iterable[Batch] | None, examples: int) -> None:
    """Attacks the examples, unless those in the folder are of the same classifier, data and attack, and draws them.

    Args:
      own: the page's folder, inside of a run's with result.json.
      context: what was measured.
      batches: of the examples; the first of the context's by default.
      examples: at most so many.
    """
    result = record.read(own.parent / record.RESULT)
    identity = {name: getattr(context, name) for name in ("norm", "epsilon", "steps", "step_size", "seed", "adaptive")}
    identity |= {"classifier": context.fingerprint, "split": str(result.get("split")), "asked": examples}
    walk = _known(own / EXAMPLES, identity)
    if walk is None:
        walk = attacked(context, context.batches() if batches is None else batches, examples)
        charts.write(walk, own, content.class_names(result, walk.clean_logits.shape[1]))
        walk.save(own / EXAMPLES, **identity)
        (own / SHOWN).unlink(missing_ok=True)
    book, ledger = stories.book_of(result, own.parent)
    written = json.dumps([str(ledger), sum(map(len, book.values()))])
    if _told(own / SHOWN) != written:
        broke = stories.images_of(book, ledger) if ledger else {}
        _write(own / SHOWN, written, shown(context.logits_fn, walk, broke))


def attacked(context: Context, batches: Iterable[Batch], examples: int) -> walks.Walk:
    """The walk of the context's PGD, one start, on the first examples."""
    images, labels, indices = first(batches, examples)
    return walks.walk(
        context.logits_fn,
        images,
        labels,
        norm=context.norm,
        epsilon=context.epsilon,
        steps=context.steps,
        step_size=context.step_size,
        seed=context.seed,
        indices=indices,
        attacked=context.differentiated(),
    )


def first(batches: Iterable[Batch], count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first so many real examples: images [N,H,W,C] as stored, labels [N], dataset indices [N]."""
    parts: list[dict[str, np.ndarray]] = []
    for batch in padded(batches):
        parts.append({name: batch[name][batch["mask"]] for name in ("image", "label", "index")})
        if sum(len(part["label"]) for part in parts) >= count:
            break
    return tuple(np.concatenate([part[name] for part in parts])[:count] for name in ("image", "label", "index"))


def shown(logits_fn: LogitsFn, walk: walks.Walk, broke: dict[int, np.ndarray]) -> dict[str, np.ndarray]:
    """What the browser shows besides the walk.

    Args:
      broke: {dataset index: the image by which AutoAttack broke it}.

    Returns:
      "rows" of the walk with "images" and their "logits" in place of its own, and attention where there is some.
    """
    rows = np.array([n for n, index in enumerate(walk.indices.tolist()) if index in broke], int)
    worst = walk.adversarial.copy()
    found: dict[str, np.ndarray] = {"rows": rows}
    if len(rows):
        worst[rows] = np.stack([broke[int(walk.indices[row])] for row in rows])
        classifier = as_logits_fn(logits_fn)
        found |= {"images": worst[rows], "logits": _in_batches(lambda x: _logits(classifier, x), worst[rows])}
    return found | attention_of(logits_fn, walk.images, worst)


def attention_of(logits_fn: LogitsFn, images: np.ndarray, adversarial: np.ndarray) -> dict[str, np.ndarray]:
    """Maps [N,h,w] of what the classifier reads of each image, by rollout; {} of a model that has none to roll out."""
    roll = functools.partial(attention.attention_rollout, logits_fn)
    try:
        return {name: _in_batches(roll, x, FEW) for name, x in zip(ATTENTION, (images, adversarial))}
    except ValueError:  # of convolutions, windows, or a function of another library
        return {}


@jax.jit
def _logits(logits_fn: LogitsFn, images: Array) -> Array:
    return losses.in_float32(logits_fn(images))


def _in_batches(function: Callable[[np.ndarray], Array], images: np.ndarray, size: int = walks.BATCH) -> np.ndarray:
    parts, size = [], min(size, len(images))
    for start in range(0, len(images), size):
        part = images[start : start + size]
        full = np.concatenate([part, np.repeat(part[:1], size - len(part), axis=0)])  # one program serves all
        parts.append(np.asarray(function(full))[: len(part)])
    return np.concatenate(parts)


def read(own: pathlib.Path, classifier: str) -> Gallery | None:
    """The examples in the folder of a page; None where there are none of that classifier (its hash).

    Raises:
      ValueError: one line, if a file is damaged.
    """
    if not (own / EXAMPLES).is_file():
        return None
    walk, identity = walks.load(own / EXAMPLES)
    if identity.get("classifier") != classifier:
        return None
    held = _arrays(own / SHOWN) if (own / SHOWN).is_file() else {"rows": np.zeros(0, int)}
    if len(rows := held["rows"]):
        worst, logits = walk.adversarial.copy(), walk.adversarial_logits.copy()
        worst[rows], logits[rows] = held["images"], held["logits"]
        walk = dataclasses.replace(walk, adversarial=worst, adversarial_logits=logits)
    maps = tuple(held[name] for name in ATTENTION) if ATTENTION[0] in held else None
    return Gallery(walk, maps, str(identity.get("split")))


def _known(path: pathlib.Path, identity: dict[str, Any]) -> walks.Walk | None:
    """The walk in a file, if it is of that identity; a damaged file is made anew."""
    try:
        walk, told = walks.load(path)
    except (FileNotFoundError, ValueError):
        return None
    return walk if told == identity else None


def _told(path: pathlib.Path) -> str | None:
    try:
        return str(_arrays(path)["ledger"])
    except ValueError:
        return None


def _arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path}: is damaged ({str(error).splitlines()[0] if str(error) else error!r}); remove it"
        ) from None


def _write(path: pathlib.Path, ledger: str, arrays: dict[str, np.ndarray]) -> None:
    held = io.BytesIO()
    np.savez_compressed(held, ledger=ledger, **arrays)
    provenance.write_atomically(path, held.getvalue())

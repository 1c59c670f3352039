"""Pseudo-labels for images that have none: robust-vit label --data=npz:IMAGES.npz --workdir=RUN --out=FILE.npz

Labels every image by a classifier, a run or converted weights, and writes an .npz file with `image`, `label` and
`confidence`, the probability that the classifier gives to its label. Labels that the data may have are ignored; an npz
file needs none. To train on it:

    robust-vit label --data=npz:generated.npz --workdir=runs/standard --out=labelled.npz
    robust-vit train --config=digits --workdir=runs/more --config.data.extra.name=npz \\
        --config.data.extra.options.path=labelled.npz --config.data.extra.ratio=0.7

Reference: Carmon et al., Unlabeled Data Improves Adversarial Robustness, NeurIPS 2019, arXiv 1905.13736; Gowal et al.,
Improving Robustness using Generated Data, NeurIPS 2021, arXiv 2110.09468.
"""

import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from robust_vit import commands, parallel
from robust_vit import config as config_lib
from robust_vit.classifier import Classifier
from robust_vit.data import arrays, pipeline, splits, writing
from robust_vit.errors import check, check_choice
from robust_vit.loading import load
from robust_vit.subject import on_data
from robust_vit.training import experiment
from robust_vit.typing import Array

_FLAGS = flags.FlagValues()


def _text(name: str, default: str | None, help: str) -> flags.FlagHolder:
    return flags.DEFINE_string(name, default, help, flag_values=_FLAGS)


_DATA = _text("data", None, "The images: npz:/file.npz, folder:/path, tfds:name, ... Required.")
_SPLIT = _text("split", "train", "train, validation or test of them.")
_WORKDIR = _text("workdir", None, "The classifier: a run folder; or --converted.")
_CONVERTED = _text("converted", None, "The classifier: a folder of converted weights, see robust_vit.convert.")
_CHECKPOINT = _text("checkpoint", "best", "Of a run: best (by validation), latest, or a step.")
_WEIGHTS = _text("weights", "", "Of a run: raw or ema; by default what it selects its best checkpoint by.")
_OUT = _text("out", None, "The .npz file to write; one that is there is never replaced. Required.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 256, "Images at once, over all devices.", flag_values=_FLAGS)
_DEVICES = flags.DEFINE_integer("devices", 0, "How many devices share a batch; 0: all.", flag_values=_FLAGS)


def check_flags() -> pathlib.Path:
    """Rejects bad flags before anything is loaded, and returns the file to write."""
    check("data", _DATA.value, bool(_DATA.value), "given: the images, --data=npz:/file.npz")
    check_choice("split", _SPLIT.value, splits.SPLITS)
    one = bool(_WORKDIR.value) != bool(_CONVERTED.value)
    check("workdir", _WORKDIR.value, one, "given, a run folder, or --converted, but not both")
    run_only = _CHECKPOINT.value == "best" and not _WEIGHTS.value
    check("converted", _CONVERTED.value, run_only or not _CONVERTED.value, "given without --checkpoint and --weights")
    check("out", _OUT.value, bool(_OUT.value) and _OUT.value.endswith(".npz"), "given: the file, --out=FILE.npz")
    out = pathlib.Path(_OUT.value)
    check("out", _OUT.value, not out.exists(), "a file that is not there yet")
    check("batch_size", _BATCH_SIZE.value, _BATCH_SIZE.value >= 1, "at least 1")
    check("devices", _DEVICES.value, _DEVICES.value >= 0, "a number of devices, or 0 for all")
    return out


def open_images(classifier: Classifier) -> pipeline.Evaluation:
    """The images in order, as the classifier's evaluation transforms them."""
    size = getattr(classifier.module, "image_size", None)
    config = on_data(classifier.config or config_lib.base(), _DATA.value, size)
    if config.data.name == "npz":
        config.data.options.label_key = ""
    dataset = experiment.build_data(config)
    return pipeline.evaluate(
        dataset.split(_SPLIT.value), batch_size=_BATCH_SIZE.value, transforms=dataset.evaluation_transforms
    )


@jax.jit
def predict(classifier: Classifier, images: Array) -> tuple[Array, Array]:
    """Returns the most likely classes [B] and their probabilities [B] of images [B,H,W,C]."""
    probabilities = jax.nn.softmax(classifier(images))
    return jnp.argmax(probabilities, axis=-1).astype(jnp.int32), jnp.max(probabilities, axis=-1)


def labelled(
    classifier: Classifier, batches: pipeline.Evaluation, mesh: Any
) -> Iterator[tuple[np.ndarray, writing.Columns]]:
    """Images uint8 [n,H,W,C] with their `label` [n] and `confidence` [n], batch by batch."""
    classifier = parallel.replicate(mesh, classifier)
    for batch in batches:
        label, confidence = predict(classifier, parallel.global_batch(mesh, batch["image"]))
        mask = batch["mask"]
        yield batch["image"][mask], {"label": np.asarray(label)[mask], "confidence": np.asarray(confidence)[mask]}


def check_fit(classifier: Classifier, shape: tuple[int, ...]) -> None:
    """Raises ValueError unless the classifier takes images of this shape; nothing is compiled."""
    module = classifier.module
    try:
        jax.eval_shape(predict, classifier, jax.ShapeDtypeStruct((1, *shape), jnp.uint8))
    except Exception:  # Flax and JAX raise many kinds for shapes that do not fit
        wanted = f"{(*np.broadcast_to(module.image_size, 2).tolist(), module.channels)}, as the classifier takes them"
        check("data: image shape", tuple(shape), False, wanted)


def label() -> pathlib.Path:
    """Does what the flags ask for, and returns the file."""
    out = check_flags()
    mesh = parallel.mesh(_DEVICES.value)
    size = _BATCH_SIZE.value
    check("batch_size", size, size % mesh.size == 0, f"divisible by the number of devices, {mesh.size}")
    if _WORKDIR.value:
        classifier = load(_WORKDIR.value, checkpoint=_CHECKPOINT.value, weights=_WEIGHTS.value)
    else:
        classifier = load(_CONVERTED.value)
    batches = open_images(classifier)
    check_fit(classifier, batches.shape)
    writing.write_npz(out, batches.examples, labelled(classifier, batches, mesh))
    labels, confidence = (arrays.mapped(out, name) for name in ("label", "confidence"))
    print(f"{len(labels)} images of {len(np.unique(labels))} classes, median confidence {np.median(confidence):.3f}")
    print(f"written to {out}")
    return out


def _work(arguments: Sequence[str]) -> pathlib.Path | None:
    if commands.wants_help(arguments):
        return print(f"{__doc__}\n{_FLAGS.get_help()}")
    commands.parse(_FLAGS, arguments)
    return label()


def main(arguments: Sequence[str]) -> pathlib.Path | None:
    """Runs the command; an error that the user can mend ends with one line."""
    return commands.run(_work, arguments)


if __name__ == "__main__":
    main(sys.argv)

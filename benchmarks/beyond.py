"""The figures of docs/beyond.md: what each family of attacks does to two small transformers on the digits.

    python benchmarks/beyond.py --robust=runs/digits --natural=runs/plain --rows=universal,transfer,blackbox

Prints one line a figure with its 95 % interval. The runs are trained by `robust-vit train --config=digits:adversarial`
and `--config=digits:standard`.
"""

import argparse
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import robust_vit as rv
from robust_vit import attacks, physical, randomness
from robust_vit.analysis import transfer as matrices
from robust_vit.attacks import minimal, patches
from robust_vit.attacks.blackbox import hunt
from robust_vit.evaluation import destruction, intervals, query_curve, security_curve
from robust_vit.evaluation.measure import Batch

EPSILON = 0.1  # Linf, of the runs' own training


def share(count: int, total: int) -> str:
    """A share in words, with its interval."""
    low, high = intervals.wilson(count, total)
    return f"{100 * count / total:.1f} % ({100 * low:.0f} to {100 * high:.0f}, of {total})"


def digits(limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of the test split, as floats, and their labels."""
    from robust_vit import data

    test = data.build("digits").test
    rows = [test[index] for index in range(limit)]
    images = np.stack([row["image"] for row in rows]).astype(np.float32) / 255
    return images, np.array([row["label"] for row in rows], np.int32)


def attacked(model, attack, images, labels) -> int:
    """How many images are right after an attack, and how many before."""
    keys = randomness.example_keys(0, np.arange(len(labels)), randomness.EVALUATION_ATTACK)
    changed = jax.jit(attack)(keys, model, jnp.asarray(images), jnp.asarray(labels))
    return int((model.predict(np.asarray(changed)) == labels).sum())


def batches(images, labels) -> list[Batch]:
    return [{"image": images, "label": labels, "index": np.arange(len(labels))}]


def universal(models, images, labels, out):
    half = len(labels) // 2
    for name, model in models.items():
        x, y = jnp.asarray(images), jnp.asarray(labels)
        found = attacks.universal(model, x[:half], y[:half], epsilon=EPSILON, epochs=20, batch_size=25)
        changed = np.clip(images[half:] + np.asarray(found.change)[None], 0, 1)
        stands = int((model.predict(changed) == labels[half:]).sum())
        yield f"universal, Linf {EPSILON}, {name}: right about {share(stands, len(labels) - half)} unseen images"


def transfer(models, images, labels, out):
    found = matrices.matrix(models, images, labels, threat=f"linf-{EPSILON}", diversity=0.5, steps=10)
    matrices.plot(found).savefig(out / "transfer.png", dpi=140)
    told = found.to_dict()["fooled"]
    for source, cells in told.items():
        for victim, cell in cells.items():
            low, high = (round(100 * one) for one in cell["interval"])
            yield f"transfer, made on {source}, {victim} fooled: {100 * cell['rate']:.1f} % ({low} to {high})"


def blackbox(models, images, labels, out):
    for name, model in models.items():
        curve = query_curve.measure(hunt("square", queries=300), EPSILON, model, batches(images, labels))
        for queries in (30, 300):
            yield f"Square, {queries} queries, {name}: {share(curve.standing(queries + 2), curve.examples)} stand"
        curve = query_curve.measure(hunt("nes", steps=20, pairs=10), EPSILON, model, batches(images, labels))
        yield f"NES, 421 queries, {name}: {share(curve.standing(1e9), curve.examples)} stand"


def patch(models, images, labels, out):
    for name, model in models.items():
        for size in (2, 3):
            made = attacks.patch(epsilon=1.0, size=size, steps=30)
            yield f"patch {size}x{size}, {name}: {share(attacked(model, made, images, labels), len(labels))} stand"


def tokens(models, images, labels, out):
    for name, model in models.items():
        for choose in ("attention", "random"):
            made = attacks.patch_fool(epsilon=1.0, steps=40, choose=choose)
            count = attacked(model, made, images, labels)
            yield f"Patch-Fool, one 2x2 patch chosen by {choose}, {name}: {share(count, len(labels))} stand"


def nearest(models, images, labels, out):
    runs = [("ddn", "l2", 100), ("deepfool", "l2", 10), ("fmn", "linf", 100), ("pdpgd", "linf", 100)]
    for name, model in models.items():
        for attack, norm, steps in runs:
            search = minimal.search(attack, norm=norm, steps=steps)
            curve = security_curve.measure(search, norm, model, batches(images, labels))
            yield f"{attack}, {norm}, {steps} steps, {name}: median distance {curve.median:.4f}"


def printed(models, images, labels, out):
    given = dict(epsilon=EPSILON)
    made = {
        "FGSM": attacks.fgsm(**given),
        "BIM": attacks.bim(**given, steps=10),
        "PGD": attacks.pgd(**given, steps=20),
        "EOT-PGD": attacks.pgd(**given, steps=20, stochastic=True, eot=5),
    }
    for name, model in models.items():
        x, y = jnp.asarray(images), jnp.asarray(labels)
        found = destruction.measure(made, model, x, y, physical.camera(), stochastic=("EOT-PGD",))
        for attack, one in found.items():
            low, high = (round(100 * end) for end in one.interval)
            told = f"destruction rate {100 * one.rate:.1f} % ({low} to {high}), fools {100 * one.fooled:.1f} %"
            yield f"{attack}, {name}: {told} of {len(labels)} before"


def stickers(models, images, labels, out):
    for name, model in models.items():
        x, y = jnp.asarray(images), jnp.asarray(labels)
        half = len(labels) // 2
        given = dict(size=4, target=8, steps=200)
        found = patches.universal_patch(model, x[:half], y[:half], **given)
        keys = jax.random.split(jax.random.key(1), len(labels) - half)
        others = labels[half:] != 8
        for what, one in (("found", found), ("noise", patches.placing.random_patch(jax.random.key(2), found.mask, 1))):
            shown = np.asarray(patches.placed(keys, one, x[half:]))
            hits = int(((model.predict(shown) == 8) & others).sum())
            yield f"universal round patch of 4 pixels, {what}, {name}: seen as 8 {share(hits, int(others.sum()))}"


ROWS = {row.__name__: row for row in (universal, transfer, blackbox, patch, tokens, nearest, printed, stickers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--robust", required=True, help="a run folder")
    parser.add_argument("--natural", required=True, help="a run folder")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--limit", type=int, default=200, help="test images")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="folder for pictures")
    flags = parser.parse_args()
    models = {"robust": rv.load(flags.robust), "natural": rv.load(flags.natural)}
    images, labels = digits(flags.limit)
    for name in flags.rows.split(","):
        for line in ROWS[name](models, images, labels, flags.out):
            print(json.dumps({"row": name, "limit": flags.limit, "line": line}), flush=True)


if __name__ == "__main__":
    main()

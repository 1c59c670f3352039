"""What a process of a job does in `test_two_hosts`: python tests/two_hosts.py WHAT FOLDER [INDEX PORT]; alone without.

train FOLDER      trains a tiny run whose state is split over all devices; SHARDING in the environment
measure FOLDER    attacks a batch, measures a split, runs AutoAttack; leaves attacked.npy and flags.json
differ FOLDER     starts with another seed on every process
"""

import json
import os
import pathlib
import sys

import robust_vit  # noqa: F401  first: it sets XLA_FLAGS

sys.path.insert(0, str(pathlib.Path(__file__).parent / "training"))

import jax
import numpy as np
from tiny_run import config

from robust_vit import attacks, commands, data, models, parallel, randomness
from robust_vit.evaluation.autoattack.driver import autoattack
from robust_vit.evaluation.autoattack.over_hosts import autoattack_over_hosts
from robust_vit.evaluation.measure import Measurer
from robust_vit.training import loop

FIELDS = dict(image_size=8, channels=1, patch_size=4, width=16, depth=1, heads=2, num_classes=10, pooling="mean")


def train(folder: pathlib.Path, seed: int = 0) -> None:
    made = config(
        training__epochs=0.4, training__save_every_epochs=0.15, evaluation__suite="", optimizer__ema_decay=0.9,
        parallel__devices=0, parallel__sharding=os.environ.get("SHARDING", "fsdp"), model__width=64,
        optimizer__accumulation=2,
    )  # fmt: skip
    made.seed = seed
    loop.run(made, folder, live=False)


def measure(folder: pathlib.Path) -> None:
    module = models.build("vit", **FIELDS)
    logits_fn = models.logits_fn(module, models.init(module, jax.random.key(0)))
    digits = data.build("digits")
    attack = attacks.pgd(norm="linf", epsilon=0.1, step_size=0.05, steps=2, keep="last")
    mesh, hosts, host = parallel.mesh(), jax.process_count(), jax.process_index()
    batches = data.evaluate(digits.test, batch_size=32, host_index=host, host_count=hosts, limit=40)

    def attacked(logits_fn, batch):
        keys = randomness.example_keys(0, batch["index"], randomness.EVALUATION_ATTACK)
        return attack(keys, logits_fn, robust_vit.pixels.as_float(batch["image"]), batch["label"])

    program = parallel.compile(attacked, mesh, arguments="rb", results="b")
    batch = {name: value for name, value in next(iter(batches)).items() if name != "mask"}
    images = parallel.fetch(program(parallel.replicate(mesh, logits_fn), parallel.global_batch(mesh, batch)))
    found = Measurer(attack, mesh).measure(logits_fn, batches)
    test, labels = digits.arrays("test", limit=24)
    test = np.resize(test, test.shape)
    with jax.default_device(jax.local_devices()[0]):
        local = jax.device_put(jax.device_get(logits_fn), jax.local_devices()[0])
        run = autoattack if hosts == 1 else autoattack_over_hosts
        settings = dict(norm="linf", epsilon=0.05, version=["apgd-ce", "square"], budget=0.02, tile=8, forward_tile=8)
        result = run(local, test, labels, workdir=folder / "ledger", **settings)
    if parallel.is_main():
        np.save(folder / "attacked.npy", images)
        flags = {"status": result.status.tolist(), "by": result.broken_by, "accuracy": found.accuracy}
        flags |= {"right": found.outcomes["right"].tolist(), "index": found.outcomes["index"].tolist()}
        (folder / "flags.json").write_text(json.dumps(flags))


def main(arguments: list[str]) -> None:
    what, folder = arguments[1], pathlib.Path(arguments[2])
    index = int(arguments[3]) if len(arguments) > 3 else 0
    if len(arguments) > 3:
        parallel.initialize(f"localhost:{arguments[4]}", 2, index, timeout=60)
    if what == "differ":
        train(folder, seed=index)
    else:
        {"train": train, "measure": measure}[what](folder)


if __name__ == "__main__":
    commands.run(main, sys.argv)

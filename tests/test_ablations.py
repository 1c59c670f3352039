"""The shipped ablations: every variant of every sweep is a run that could begin, and the grids are the paper's."""

import pytest

from robust_vit import config as config_lib
from robust_vit import sweep

SWEEPS = {name: list(config_lib.sweeps(name)) for name in ("ablations/digits", "ablations/imagenet100")}


def planned(*arguments, workdir="runs/s"):
    return sweep.plan(["sweep", f"--workdir={workdir}", *arguments])


@pytest.mark.parametrize(("config", "name"), [(c, name) for c, names in SWEEPS.items() for name in names])
def test_every_shipped_sweep_can_run(config, name):
    data = ["--data=folder:/data"] if config.endswith("100") else []
    runs = planned(f"--config={config}", f"--sweep={name}", *data)
    made = {config_lib.to_json(run.config) for run in runs}
    assert (
        len(made)
        == len(runs)
        == {"augmentation": 16, "warmup": 5, "weight_decay": 7, "attack_steps": 3}.get(name, len(runs))
    )


def test_the_augmentations_are_all_combinations():
    on = set()
    for run in planned("--config=ablations/digits", "--sweep=augmentation"):
        c = run.config
        rand = any("rand_augment" in spec for spec in c.data.train_transforms)
        on.add((c.augmentation.mixup > 0, c.augmentation.cutmix > 0, rand, c.augmentation.erase > 0))
    assert len(on) == 16

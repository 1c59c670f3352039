"""What sweeps are made of: variants as {name: {field: value}}.

The ablations of the Light Recipe, on whatever a configuration trains: `sweeps()` of a configuration file returns
{name of the sweep: variants}. The field "config" names another configuration to start from.

Reference: Debenedetti, Sehwag & Mittal, SaTML 2023, arXiv 2209.07399; the grids are of its repository's `sweeps`.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Variants = dict[str, dict[str, Any]]

WARMUP_EPOCHS = (0.0, 5.0, 10.0, 20.0, 30.0)
WEIGHT_DECAYS = (0.0, 0.001, 0.01, 0.05, 0.1, 0.5, 1.0)
ATTACK_STEPS = (1, 5, 10)
MIXUP, CUTMIX, ERASE = 0.8, 1.0, 0.25


def one_field(field: str, values: Sequence[Any]) -> Variants:
    """A variant for every value of a field, named by it."""
    short = field.rpartition(".")[2]
    return {f"{short}={value:g}": {field: value} for value in values}


def configs(names: Mapping[str, str]) -> Variants:
    """A variant for every configuration: {name of the variant: configuration}."""
    return {name: {"config": config} for name, config in names.items()}


def augmentations(transforms: Sequence[str], rand_augment: str, otherwise: Sequence[str] = ()) -> Variants:
    """All 16 combinations of MixUp, CutMix, RandAugment and random erasing.

    Args:
      transforms: of the host, those that every variant has.
      rand_augment: what follows them where RandAugment is on.
      otherwise: what follows them where it is off.
    """
    found: Variants = {}
    for on in itertools.product((False, True), repeat=4):
        mixup, cutmix, rand, erase = on
        words = [word for word, is_on in zip(("mixup", "cutmix", "randaugment", "erasing"), on) if is_on]
        found["+".join(words) or "none"] = {
            "augmentation.mixup": MIXUP * mixup,
            "augmentation.cutmix": CUTMIX * cutmix,
            "augmentation.erase": ERASE * erase,
            "data.train_transforms": (*transforms, *([rand_augment] if rand else otherwise)),
        }
    return found


def heavy(variants: Variants, transforms: Sequence[str], rand_augment: str) -> Variants:
    """The variants, all of them with MixUp, CutMix, RandAugment and random erasing."""
    everything = list(augmentations(transforms, rand_augment).values())[-1]
    return {name: everything | overrides for name, overrides in variants.items()}


def warmup() -> Variants:
    """Epochs until epsilon is reached."""
    return one_field("attack.warmup_epochs", WARMUP_EPOCHS)


def weight_decay() -> Variants:
    """Of AdamW."""
    return one_field("optimizer.weight_decay", WEIGHT_DECAYS)


def attack_steps() -> Variants:
    """Steps of PGD in training."""
    return one_field("attack.steps", ATTACK_STEPS)

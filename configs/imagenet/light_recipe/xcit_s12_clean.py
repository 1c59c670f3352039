"""XCiT-S12/16 without an attack, canonical augmentation: the light recipe's standard model.

    robust-vit train --config=imagenet/light_recipe/xcit_s12_clean --workdir=runs/xcit_s12_clean

RandAugment, MixUp 0.8, CutMix 1.0, random erasing 0.25. A figure of this run is not known.

Cost: 110 epochs of 3 forward passes an image, 1.28 M images, 4.8 GMACs a pass: 4.1e18 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet_clean()

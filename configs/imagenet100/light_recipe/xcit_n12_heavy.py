"""XCiT-N12/16 with canonical augmentation at 4/255 on 100 classes, light recipe: no figure at hand.

    robust-vit train --config=imagenet100/light_recipe/xcit_n12_heavy --workdir=runs/xcit_n12_heavy

What the ablations of warm-up and of attack steps vary: RandAugment, MixUp 0.8, CutMix 1.0, erasing 0.25.

The data are a folder: --data=folder:PATH.

Cost: 110 epochs of 5 forward passes an image, 0.128 M images, 0.55 GMACs a pass: 7.7e16 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet100_heavy()

"""XCiT-N12/16 on 100 classes without an attack, light recipe: no figure at hand.

    robust-vit train --config=imagenet100/light_recipe/xcit_n12_clean --workdir=runs/xcit_n12_clean

MixUp 0.8.

The data are a folder: --data=folder:PATH.

Cost: 110 epochs of 3 forward passes an image, 0.128 M images, 0.55 GMACs a pass: 4.6e16 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet100_clean()

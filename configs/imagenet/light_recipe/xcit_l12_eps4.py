"""XCiT-L12/16 at 4/255, light recipe: 73.76 clean, 47.60 AutoAttack published.

    robust-vit train --config=imagenet/light_recipe/xcit_l12_eps4 --workdir=runs/xcit_l12_eps4

PGD-2, 512 images a step.

Cost: 110 epochs of 7 forward passes an image, 1.28 M images, 18.93 GMACs a pass: 3.7e19 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet("xcit_large_12_p16_224")

"""XCiT-M12/16 at 4/255, light recipe: 74.04 clean, 45.24 AutoAttack published.

    robust-vit train --config=imagenet/light_recipe/xcit_m12_eps4 --workdir=runs/xcit_m12_eps4

PGD-1, 512 images a step.

Cost: 110 epochs of 5 forward passes an image, 1.28 M images, 8.51 GMACs a pass: 1.2e19 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet("xcit_medium_12_p16_224")

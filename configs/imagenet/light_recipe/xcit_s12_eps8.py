"""XCiT-S12/16 at 8/255, light recipe: 63.46 clean, 25.00 AutoAttack published.

    robust-vit train --config=imagenet/light_recipe/xcit_s12_eps8 --workdir=runs/xcit_s12_eps8

PGD-2, 512 images a step.

Weights of this run are what fine-tuning on smaller data begins with.

Cost: 110 epochs of 7 forward passes an image, 1.28 M images, 4.8 GMACs a pass: 9.5e18 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet("xcit_small_12_p16_224", 8 / 255)

"""ConvNeXt-T at 4/255, light recipe: 71.64 clean, 44.44 AutoAttack published.

    robust-vit train --config=imagenet/light_recipe/convnext_t_eps4 --workdir=runs/convnext_t_eps4

PGD-1, 512 images a step.

Cost: 110 epochs of 5 forward passes an image, 1.28 M images, 4.47 GMACs a pass: 6.3e18 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet("convnext_tiny")

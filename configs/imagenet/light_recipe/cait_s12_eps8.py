"""CaiT-S12 at 8/255, light recipe: published as an ablation on ImageNet-100 alone.

    robust-vit train --config=imagenet/light_recipe/cait_s12_eps8 --workdir=runs/cait_s12_eps8

PGD-2, 512 images a step. A figure on ImageNet is not known.

Cost: 110 epochs of 7 forward passes an image, 1.28 M images, 4.75 GMACs a pass: 9.4e18 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet("cait_s12_224", 8 / 255)

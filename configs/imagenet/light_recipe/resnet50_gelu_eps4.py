"""ResNet-50 with GELU at 4/255, light recipe: 66.54 clean, 35.12 AutoAttack published.

    robust-vit train --config=imagenet/light_recipe/resnet50_gelu_eps4 --workdir=runs/resnet50_gelu_eps4

PGD-1, 8192 images a step; on fewer devices set `optimizer.accumulation`, or 512 images and a learning rate of 0.2.

Cost: 100 epochs of 5 forward passes an image, 1.28 M images, 4.11 GMACs a pass: 5.3e18 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.imagenet_resnet()

"""ResNet-50 on CIFAR-100 at 8/255, fine-tuned, light recipe: 61.28 clean, 22.01 AutoAttack published.

    robust-vit train --config=cifar100/light_recipe/resnet50 --workdir=runs/resnet50

TRADES 6, 10 steps, SGD; begins with a ResNet-50 of ImageNet at 8/255 (config.initial.weights). These settings stood
in the repository for a while and are probably this run's.

Cost: 22 epochs of 27 forward passes an image, 0.05 M images, 1.3 GMACs a pass: 7.7e16 operations.
Not run in this project.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023, arXiv
2209.07399; github.com/dedeswim/vits-robustness-torch.
"""

from robust_vit import recipes


def get_config():
    return recipes.light_recipe.cifar_resnet("cifar100", initial="runs/resnet50_eps8")

"""ViT-B/2 on CIFAR-100 at 8/255 with generated images: the family's best is 44.07 AutoAttack.

    robust-vit train --config=cifar100/plain_vit/vit_b2 --workdir=runs/vit_b2

TRADES 5, Lion, label smoothing 0.4, 80 % generated images: --config.data.extra.options.path=FILE.npz, of
github.com/wzekai99/DM-Improves-AT. Which size and length gave that figure is not known.

Cost: 2000 epochs of 27 forward passes an image, 0.05 M images, 23 GMACs a pass: 1.2e20 operations.
Not run in this project.

Reference: github.com/demon2036/jax-adv-vit; Wu et al., Vision Transformers Beat WideResNets on Small Scale Datasets
Adversarial Robustness, AAAI 2025.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.plain_vit("cifar100", "base", beta=5.0)

"""ViT-S/2 on CIFAR-10 at 8/255, fine-tuned from MIMIR: 88.11 clean, 53.18 AutoAttack published.

    robust-vit train --config=cifar10/mimir/vit_s2 --workdir=runs/vit_s2

PGD-10, layer-wise decay 0.65. Begins with the run beside it, pretrain_vit_s2 (config.initial.weights).

Cost: 50 epochs of 23 forward passes an image, 0.05 M images, 6.07 GMACs a pass: 7.0e17 operations.
Not run in this project.

Reference: Xu et al., MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness, arXiv
2312.04960; github.com/xiaoyunxxy/MIMIR.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.mimir_cifar10("small", initial="runs/pretrain_vit_s2")

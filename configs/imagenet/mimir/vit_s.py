"""ViT-S/16 at 4/255, fine-tuned from MIMIR: 71.29 clean, 40.98 under PGD-20 published.

    robust-vit train --config=imagenet/mimir/vit_s --workdir=runs/vit_s

PGD-1 with a step of 5/255, layer-wise decay 0.65. Begins with the run beside it, pretrain_vit_s
(config.initial.weights).

Cost: 100 epochs of 5 forward passes an image, 1.28 M images, 4.61 GMACs a pass: 5.9e18 operations.
Not run in this project.

Reference: Xu et al., MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness, arXiv
2312.04960; github.com/xiaoyunxxy/MIMIR.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.mimir_imagenet("small", initial="runs/pretrain_vit_s")

"""ViT-S/2 pre-trained on CIFAR-10 by MIMIR at 8/255, without labels.

    robust-vit train --config=cifar10/mimir/pretrain_vit_s2 --workdir=runs/pretrain_vit_s2

PGD-1 with a step of 10/255 on the masked autoencoder's own error; 512 images a step. The cost counts whole passes;
the encoder sees a quarter of the patches.

Cost: 800 epochs of 5 forward passes an image, 0.05 M images, 6.07 GMACs a pass: 2.4e18 operations.
Not run in this project.

Reference: Xu et al., MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness, arXiv
2312.04960; github.com/xiaoyunxxy/MIMIR.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.mimir_pretraining("cifar10", "small", batch_size=512, patch_size=2)

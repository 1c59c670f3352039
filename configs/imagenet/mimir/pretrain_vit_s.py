"""ViT-S/16 pre-trained on ImageNet by MIMIR at 8/255, without labels.

    robust-vit train --config=imagenet/mimir/pretrain_vit_s --workdir=runs/pretrain_vit_s

PGD-1 with a step of 10/255 on the masked autoencoder's own error; 2048 images a step. The cost counts whole passes;
the encoder sees a quarter of the patches.

Cost: 800 epochs of 5 forward passes an image, 1.28 M images, 4.61 GMACs a pass: 4.7e19 operations.
Not run in this project.

Reference: Xu et al., MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness, arXiv
2312.04960; github.com/xiaoyunxxy/MIMIR.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.mimir_pretraining("imagenet2012:5.1.0", "small", batch_size=2048)

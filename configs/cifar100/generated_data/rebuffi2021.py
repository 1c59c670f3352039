"""ResNet-50 on CIFAR-100 at 8/255 with CutMix and averaged weights, by Rebuffi 2021.

    robust-vit train --config=cifar100/generated_data/rebuffi2021 --workdir=runs/rebuffi2021

Our ResNet-50 stands where the paper has a WideResNet-28-10, which this library does not have (62.41 clean, 32.06
AutoAttack): its figure is not to be expected here.

Generated images: --config.data.extra.options.path=FILE.npz.

Cost: 400 epochs of 27 forward passes an image, 0.05 M images, 1.3 GMACs a pass: 1.4e18 operations.
Not run in this project.

Reference: Rebuffi et al., Data Augmentation Can Improve Robustness, NeurIPS 2021, arXiv 2111.05328.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.rebuffi("cifar100", cutmix=1.0)

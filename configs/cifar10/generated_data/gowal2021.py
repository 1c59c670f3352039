"""ResNet-50 on CIFAR-10 at 8/255 with generated images, by Gowal 2021.

    robust-vit train --config=cifar10/generated_data/gowal2021 --workdir=runs/gowal2021

Our ResNet-50 stands where the paper has a WideResNet-28-10, which this library does not have (87.5 clean, 63.44
AutoAttack): its figure is not to be expected here.

Generated images: --config.data.extra.options.path=FILE.npz.

Cost: 400 epochs of 27 forward passes an image, 0.05 M images, 1.3 GMACs a pass: 1.4e18 operations.
Not run in this project.

Reference: Gowal et al., Improving Robustness using Generated Data, NeurIPS 2021, arXiv 2110.09468.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.rebuffi("cifar10")

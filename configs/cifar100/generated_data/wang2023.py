"""ResNet-50 on CIFAR-100 at 8/255 with images of a diffusion model, by Wang 2023.

    robust-vit train --config=cifar100/generated_data/wang2023 --workdir=runs/wang2023

Our ResNet-50 stands where the paper has a WideResNet-28-10, which this library does not have (72.58 clean, 38.83
AutoAttack): its figure is not to be expected here.

Generated images: --config.data.extra.options.path=FILE.npz.

Cost: 400 epochs of 27 forward passes an image, 0.05 M images, 1.3 GMACs a pass: 1.4e18 operations.
Not run in this project.

Reference: Wang et al., Better Diffusion Models Further Improve Adversarial Training, ICML 2023, arXiv 2302.04638.
"""

from robust_vit import recipes


def get_config():
    return recipes.published.with_generated("cifar100", 512, learning_rate=0.2, beta=5.0, ratio=0.7)

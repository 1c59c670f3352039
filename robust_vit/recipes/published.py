"""Runs of other papers, in the fields that this library has. What a source does not say is marked where it is set."""

from robust_vit import config as config_lib
from robust_vit.config import ConfigDict
from robust_vit.recipes import light_recipe, parts


def revisited(name: str, epochs: float = 300, crop_fraction: float = 0.875) -> ConfigDict:
    """ImageNet at 4/255 by APGD-2 from the image itself, with heavy augmentation, from clean weights.

    The source says 80 images a GPU and not how many GPUs: 8 are assumed, 640 images a step.

    Args:
      name: of the model.
      epochs: 300 for most, 50 for some.
      crop_fraction: of the evaluated centre.

    Reference: Singh, Croce & Hein, Revisiting Adversarial Training for ImageNet: Architectures, Training and
    Generalization across Threat Models, NeurIPS 2023, arXiv 2303.01870; github.com/nmndeep/revisiting-at.
    """
    config = parts.tfds(config_lib.base(), "imagenet2012:5.1.0", batch_size=640)
    parts.photographs(config, crop_fraction=crop_fraction, more=(parts.RAND_AUGMENT,))
    parts.canonical_augmentation(config)
    parts.model(config, name)
    config.attack.name = "apgd"
    config.attack.epsilon = 4 / 255
    config.attack.steps = 2
    config.attack.random_start = False
    config.attack.options.last_gradient = False
    config.attack.schedule = "constant"
    config.objective.label_smoothing = 0.1
    warmup = 20.0 if epochs > 100 else 10.0
    parts.adamw(config, 1e-3, final=1e-10, warmup_epochs=warmup, weight_decay=0.05, start=1e-7)
    config.optimizer.b2 = 0.95
    config.optimizer.ema_decay = 0.9999
    config.initial.weights = f"runs/{name}_clean"
    parts.occasional(config, log_steps=100, validate_epochs=5.0, save_epochs=1.0)
    return parts.epochs(config, epochs)


def plain_vit(dataset: str, size: str, beta: float, epochs: float = 2000) -> ConfigDict:
    """A plain ViT with patches of 2 pixels on CIFAR and generated images: TRADES, Lion, strong label smoothing.

    Args:
      dataset: "cifar10" or "cifar100".
      size: "base" or "large".
      beta: of TRADES.
      epochs: of 50,000 images.

    Reference: github.com/demon2036/jax-adv-vit; the models of Wu et al., Vision Transformers Beat WideResNets on Small
    Scale Datasets Adversarial Robustness, AAAI 2025.
    """
    sizes = {"base": dict(width=768, depth=12, heads=12), "large": dict(width=1024, depth=24, heads=16)}
    config = parts.tfds(config_lib.base(), dataset, batch_size=1024)
    config.data.train_transforms = ("random_crop(32, padding=4, fill=128)", "flip")
    generated(config, ratio=0.8)
    parts.model(config, "vit", patch_size=2, pooling="mean", layer_scale=1e-4, **sizes[size])
    parts.trades(parts.pgd(config, 8 / 255, 10, factor=2.5), beta)
    config.attack.schedule = "constant"
    config.objective.label_smoothing = 0.4
    config.optimizer.name = "lion"
    config.optimizer.lion_b2 = 0.99
    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_learning_rate = 1e-6
    config.optimizer.final_learning_rate = 1e-5
    config.optimizer.warmup_epochs = 5.0
    config.optimizer.weight_decay = 0.5
    config.optimizer.clip_norm = 1.0
    config.optimizer.ema_decay = 0.9999
    parts.occasional(config, log_steps=100, validate_epochs=20.0, save_epochs=5.0)
    return parts.epochs(config, epochs)


def generated(config: ConfigDict, ratio: float, label_smoothing: float = 0.0) -> ConfigDict:
    """A share of every batch from a file of generated images, data.extra.options.path: [n,32,32,3] and labels.

    Args:
      config: is changed.
      ratio: share of the batch.
      label_smoothing: of the generated images' labels alone.
    """
    config.data.extra.name = "npz"
    config.data.extra.options.path = config_lib.placeholder(str)
    config.data.extra.ratio = ratio
    config.data.extra.label_smoothing = label_smoothing
    return config


def with_generated(dataset: str, batch_size: int, learning_rate: float, beta: float, ratio: float) -> ConfigDict:
    """TRADES on CIFAR with generated images and an average of the weights, on the ResNet-50 of this library.

    The papers train WideResNets and PreAct ResNets with SiLU, which this library does not have: their figures are not
    to be expected of this model.

    Args:
      dataset: "cifar10" or "cifar100".
      batch_size: images a step, real and generated.
      learning_rate: of SGD, after a warm-up of 10 epochs.
      beta: of TRADES.
      ratio: share of generated images in a batch; 0 for none.
    """
    config = parts.tfds(config_lib.base(), dataset, batch_size)
    config.data.train_transforms = ("random_crop(32, padding=4)", "flip")
    if ratio:
        generated(config, ratio, label_smoothing=0.1)
    parts.model(config, "resnet50_32")
    parts.trades(parts.pgd(config, 8 / 255, 10, factor=2.5), beta)
    config.attack.schedule = "constant"
    config.attack.batch_norm = "batch"
    config.objective.statistics = "adversarial"
    parts.sgd(config, learning_rate, weight_decay=5e-4)
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.ema_decay = 0.995
    parts.occasional(config, log_steps=50, validate_epochs=5.0, save_epochs=5.0)
    return parts.epochs(config, 400)


def rebuffi(dataset: str, ratio: float = 0.7, cutmix: float = 0.0) -> ConfigDict:
    """`with_generated` at 1024 images a step; the attack goes with Adam's steps on the pixels, 0.1 and then 0.01.

    Reference: Rebuffi et al., Data Augmentation Can Improve Robustness, NeurIPS 2021, arXiv 2111.05328; Gowal et al.,
    Improving Robustness using Generated Data, NeurIPS 2021, arXiv 2110.09468; google-deepmind/deepmind-research,
    adversarial_robustness.
    """
    config = with_generated(dataset, 1024, learning_rate=0.4, beta=6.0, ratio=ratio)
    config.attack.options.update = "adam"
    config.attack.step_size = 0.1
    config.augmentation.cutmix = cutmix
    return config


def mimir_pretraining(dataset: str, size: str, batch_size: int, **model: object) -> ConfigDict:
    """Masked autoencoding of attacked images without labels, 800 epochs; 1.5e-4 for every 256 images of a step.

    Args:
      dataset: "imagenet2012:5.1.0", or "cifar10", whose source mixes generated images in.
      size: "tiny", "small" or "base".
      batch_size: images a step.
      **model: keywords of the model.

    Reference: see `mimir`.
    """
    config = parts.tfds(config_lib.base(), dataset, batch_size)
    side = 224 if dataset.startswith("imagenet") else 32
    parts.photographs(config, side, crop_fraction=0.875)
    config.data.train_transforms = (f"random_resized_crop({side}, scale=(0.2, 1.0))", "flip")
    if side == 32:
        config.data.evaluation_transforms = ()
    parts.model(config, f"masked_autoencoder_{size}_patch16_224", **model)
    parts.pgd(config, 8 / 255, 1, factor=1.25)
    config.attack.schedule = "constant"
    config.objective.name = "mimir"
    parts.adamw(config, 1.5e-4 * batch_size / 256, final=0.0, warmup_epochs=40.0, weight_decay=0.05)
    config.optimizer.b2 = 0.95
    parts.occasional(config, log_steps=100, validate_epochs=20.0, save_epochs=5.0)
    return parts.epochs(config, 800)


def mimir(config: ConfigDict, size: str, initial: str, *, learning_rate: float, warmup_epochs: float) -> ConfigDict:
    """What both fine-tunings of a ViT that was pre-trained by MIMIR share.

    Args:
      config: with its data.
      size: "tiny", "small" or "base".
      initial: the weights of the pre-training: a run folder, or a folder of converted weights.
      learning_rate: of the last layer.
      warmup_epochs: of the learning rate.

    Reference: Xu et al., MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness,
    arXiv 2312.04960; github.com/xiaoyunxxy/MIMIR, script/.
    """
    parts.model(config, f"vit_{size}_patch16_224", pooling="mean", drop_path=0.1)
    config.attack.schedule = "constant"
    config.objective.label_smoothing = 0.1
    config.optimizer.learning_rate = learning_rate
    config.optimizer.final_learning_rate = 1e-6
    config.optimizer.warmup_epochs = warmup_epochs
    config.optimizer.weight_decay = 0.05
    config.optimizer.layer_decay = 0.65
    config.initial.weights = initial
    config.initial.checkpoint = "latest"  # no accuracy says which moment of the pre-training is best
    return config


def mimir_imagenet(size: str, initial: str) -> ConfigDict:
    """ImageNet at 4/255: PGD-1 with a step of 5/255, no augmentation but crops; 1e-3 for every 256 of 1024 images."""
    config = parts.tfds(config_lib.base(), "imagenet2012:5.1.0", batch_size=1024)
    parts.pgd(parts.photographs(config, crop_fraction=0.875), 4 / 255, 1, factor=1.25)
    mimir(config, size, initial, learning_rate=4e-3, warmup_epochs=10.0)
    parts.occasional(config, log_steps=100, validate_epochs=5.0, save_epochs=1.0)
    return parts.epochs(config, 100)


def mimir_cifar10(size: str, initial: str) -> ConfigDict:
    """CIFAR-10 at 8/255, patches of 2 pixels: PGD-10, 0.05 for every 256 of 128 images."""
    config = parts.tfds(config_lib.base(), "cifar10", batch_size=128)
    config.data.train_transforms = ("random_crop(32, padding=4)", "flip")
    parts.pgd(config, 8 / 255, 10, factor=2.5)
    mimir(config, size, initial, learning_rate=0.025, warmup_epochs=5.0)
    parts.model(config, config.model.name, patch_size=2)
    parts.sgd(config, 0.025, weight_decay=0.05)
    parts.occasional(config, log_steps=50, validate_epochs=2.0, save_epochs=1.0)
    return parts.epochs(config, 50)


def coarse_to_fine() -> ConfigDict:
    """ViT-B/16 on ImageNet in two stages: most of it at 112 pixels by PGD-1, the rest at 224 pixels by PGD-3.

    The schedule is AdvXL's idea, coarse to fine and weak to strong, whose own runs are of a billion captioned images;
    the constants are the light recipe's.

    Reference: Wang et al., Revisiting Adversarial Training at Scale, CVPR 2024, arXiv 2401.04727.
    """
    config = light_recipe.imagenet("vit_base_patch16_224")
    config.stages.epochs = (88.0, 22.0)
    config.stages.image_sizes = (112, 224)
    config.stages.steps = (1, 3)
    config.stages.step_sizes = (6 / 255, 2 / 255)
    return config

"""The runs of "A Light Recipe to Train Robust Vision Transformers": weak augmentation, epsilon warm-up, weight decay.

Constants are those of the configurations in github.com/dedeswim/vits-robustness-torch. "100 epochs" of that code are
100 scheduled ones and 10 more at the final learning rate; epsilon and learning rate change once an epoch, and the
cosine runs below the warm-up, as there. What is known to differ here: the step size shrinks with epsilon during its
warm-up, no clean pass updates BatchNorm beside adversarial training, XCA's temperatures are not decayed, and a part of
the training images selects the checkpoint.

Reference: Debenedetti, Sehwag & Mittal, A Light Recipe to Train Robust Vision Transformers, SaTML 2023,
arXiv 2209.07399.
"""

from robust_vit import config as config_lib
from robust_vit.config import ConfigDict
from robust_vit.recipes import parts

# family -> the evaluated centre, a fraction of the resized shorter side, as timm has it
CENTRES = {"xcit": 1.0, "cait": 1.0, "resnet50": 0.95, "deit": 0.9, "vit": 0.9, "swin": 0.9, "mobilevit": 0.9}
LARGEST = ("xcit_large_12_p16_224",)  # trained with 2 steps at 4/255 too


def imagenet(name: str | None = None, epsilon: float = 4 / 255) -> ConfigDict:
    """ImageNet: PGD of 1.5 epsilon / steps, 512 images a step. Pixels are not normalised.

    PGD-1 at 4/255, PGD-2 above it and for the largest model. MobileViT sees 256 pixels, every other model 224.

    Args:
      name: of the model; None leaves it as it is.
      epsilon: in the Linf norm.
    """
    family = (name or "").partition("_")[0]
    config = _imagenet(name, 512)
    size = 256 if family == "mobilevit" else 224
    parts.photographs(config, size, jitter=0.4, crop_fraction=CENTRES.get(family, 0.875))
    _attacked(config, epsilon, 2 if epsilon > 4 / 255 or name in LARGEST else 1, warmup_epochs=10.0)
    return _adamw(config, 5e-4, final=1e-5, warmup_epochs=10.0, epochs=100, weight_decay=0.5, drop_path=0.05)


def imagenet_resnet(epsilon: float = 4 / 255) -> ConfigDict:
    """GELU ResNet-50 on ImageNet: SGD by steps, no jitter, normalised inside the model.

    The learning rate 3.2 is 0.1 for every 256 of 8192 images, 64 on each of 128 cores. On fewer devices use
    `optimizer.accumulation`, or scale both down: 0.2 at 512.
    """
    config = parts.photographs(_imagenet("resnet50_gelu", 8192), crop_fraction=CENTRES["resnet50"])
    parts.normalised(config, "half")
    _attacked(config, epsilon, 2 if epsilon > 4 / 255 else 1, warmup_epochs=10.0)
    parts.sgd(config, 3.2, weight_decay=1e-4)
    config.optimizer.schedule = "step"
    config.optimizer.decay_every_epochs = 30.0
    config.optimizer.decay_factor = 0.1
    config.optimizer.per_epoch = True
    return parts.epochs(config, 100)


def imagenet_clean() -> ConfigDict:
    """XCiT-S12 without an attack: canonical augmentation, weight decay 0.05, warm-up of 5 epochs."""
    config = parts.clean(_imagenet("xcit_small_12_p16_224", 512))
    parts.photographs(config, more=(parts.RAND_AUGMENT,))
    parts.canonical_augmentation(config)
    return _adamw(config, 5e-4, final=1e-5, warmup_epochs=5.0, epochs=100, weight_decay=0.05, drop_path=0.05)


def imagenet100(name: str = "xcit_nano_12_p16_224") -> ConfigDict:
    """XCiT-N12 on 100 classes of ImageNet: 1024 images a step, epsilon over 20 epochs, weight decay 0.05."""
    config = _imagenet100(name)
    _attacked(config, 4 / 255, 1, warmup_epochs=20.0)
    return _adamw(config, 5e-4, final=1e-5, warmup_epochs=10.0, epochs=100, weight_decay=0.05, drop_path=0.0)


def imagenet100_heavy(name: str = "xcit_nano_12_p16_224") -> ConfigDict:
    """`imagenet100` with the canonical augmentation: what the sweeps of warm-up and of attack steps begin with."""
    config = parts.canonical_augmentation(imagenet100(name))
    return parts.photographs(config, more=(parts.RAND_AUGMENT,))


def imagenet100_clean() -> ConfigDict:
    """XCiT-N12 on 100 classes without an attack, with MixUp 0.8."""
    config = parts.clean(_imagenet100("xcit_nano_12_p16_224"))
    config.augmentation.mixup = 0.8
    return _adamw(config, 5e-4, final=1e-5, warmup_epochs=10.0, epochs=100, weight_decay=0.05, drop_path=0.0)


def _imagenet(name: str | None, batch_size: int) -> ConfigDict:
    """What every run on ImageNet has: the data, label smoothing, the threat model of validation."""
    config = parts.tfds(config_lib.base(), "imagenet2012:5.1.0", batch_size)
    config.attack.epsilon = 4 / 255
    config.objective.label_smoothing = 0.1
    parts.occasional(config, log_steps=100, validate_epochs=5.0, save_epochs=1.0)
    return parts.model(config, name) if name else config


def _imagenet100(name: str) -> ConfigDict:
    """100 classes in a folder: a subfolder of images for each in `train` and in `val` of data.options.path."""
    config = _imagenet(name, 1024)
    config.data.name = "folder"
    config.data.options = ConfigDict({"path": config_lib.placeholder(str)})
    return parts.photographs(config, jitter=0.4)


def _attacked(config: ConfigDict, epsilon: float, steps: int, warmup_epochs: float = 0.0) -> ConfigDict:
    """PGD of 1.5 epsilon / steps, with a linear warm-up of epsilon or none.

    The published runs are of TPUs, where that code attacks in training mode.
    """
    parts.pgd(config, epsilon, steps)
    config.attack.schedule = "linear" if warmup_epochs else "constant"
    config.attack.warmup_epochs = warmup_epochs
    config.attack.per_epoch = bool(warmup_epochs)
    config.attack.batch_norm = "train"
    return config


def _adamw(
    config: ConfigDict,
    learning_rate: float,
    *,
    final: float,
    warmup_epochs: float,
    epochs: float,
    weight_decay: float,
    drop_path: float,
    cooldown: float = 10.0,
) -> ConfigDict:
    """AdamW from 1e-6 over the warm-up, timm's cosine, and a cooldown at its end."""
    parts.adamw(config, learning_rate, final, warmup_epochs, weight_decay, start=1e-6)
    config.optimizer.warmup_prefix = False
    config.optimizer.per_epoch = True
    config.model.drop_path = drop_path
    return parts.epochs(config, epochs, cooldown)


def cifar(dataset: str, name: str, initial: str = "") -> ConfigDict:
    """CIFAR by TRADES 6 at 8/255, 10 steps, as the published checkpoints were made: crops of nearly the whole image.

    Args:
      dataset: "cifar10" or "cifar100".
      name: of the model, at 32 pixels.
      initial: the run folder, or converted weights, of the same model trained on ImageNet at 8/255; "" from scratch.
    """
    config = _cifar(dataset, name, initial, 512)
    config.data.train_transforms = ("random_resized_crop(32, scale=(0.8, 1.2), ratio=(0.95, 1.05))", "flip")
    config.augmentation.erase = 0.2
    return _cifar_adamw(config, 2e-4, epochs=20 if initial else 100)


def cifar_later(dataset: str, name: str, initial: str) -> ConfigDict:
    """The fine-tuning configuration as it stands in the repository today, edited after the checkpoints were published:
    1024 images a step, the learning rate 2e-4 (1024 / 512)^0.5, padded crops, jitter 0.25, rotation by 2 degrees.
    """
    config = _padded(_cifar(dataset, name, initial, 1024))
    return _cifar_adamw(config, 2e-4 * 2**0.5, epochs=20)


def cifar_resnet(dataset: str, initial: str) -> ConfigDict:
    """ResNet-50 on CIFAR: SGD, 0.1 for every 128 of 1024 images, a tenth of it from epoch 10 and again from 15."""
    config = _padded(_cifar(dataset, "resnet50_32", initial, 1024))
    parts.sgd(config, 0.1 * 1024 / 128, weight_decay=5e-4)
    config.optimizer.schedule = "multistep"
    config.optimizer.milestones = (10.0, 15.0)
    config.optimizer.per_epoch = True
    config.model.drop_path = 0.05
    return parts.epochs(config, 22)


def cifar_clean(initial: str) -> ConfigDict:
    """XCiT-S12 fine-tuned on CIFAR-10 without an attack, not normalised."""
    config = parts.clean(_imagenet_weights(_small("cifar10", "xcit_small_12_p4_32", 512), initial))
    parts.photographs(config, 32, jitter=0.4)
    config.data.evaluation_transforms = ()
    config.objective.label_smoothing = 0.1
    return _adamw(config, 5e-5, final=5e-6, warmup_epochs=5.0, epochs=30, weight_decay=0.5, drop_path=0.05)


def cifar_nano(initial: str) -> ConfigDict:
    """XCiT-N12 on CIFAR-10 by PGD-1 and SGD, with the canonical augmentation."""
    config = _imagenet_weights(_small("cifar10", "xcit_nano_12_p4_32", 1024), initial)
    parts.photographs(config, 32, more=(parts.RAND_AUGMENT,))
    config.data.evaluation_transforms = ()
    parts.canonical_augmentation(_attacked(config, 8 / 255, 1))
    config.objective.label_smoothing = 0.1
    _adamw(config, 5e-3, final=1e-5, warmup_epochs=10.0, epochs=100, weight_decay=0.05, drop_path=0.0)
    return parts.sgd(config, 5e-3, weight_decay=0.05)


def _small(dataset: str, name: str, batch_size: int) -> ConfigDict:
    """Images of 32 pixels."""
    config = parts.tfds(config_lib.base(), dataset, batch_size)
    parts.occasional(config, log_steps=50, validate_epochs=2.0, save_epochs=1.0)
    return parts.model(config, name)


def _cifar(dataset: str, name: str, initial: str, batch_size: int) -> ConfigDict:
    """What the adversarial runs on CIFAR share: the data, TRADES, the normalisation."""
    config = parts.normalised(_small(dataset, name, batch_size), dataset)
    parts.trades(_attacked(config, 8 / 255, 10), beta=6.0)
    return _imagenet_weights(config, initial) if initial else config


def _padded(config: ConfigDict) -> ConfigDict:
    jitter = "color_jitter(0.25, 0.25, 0.25)"
    config.data.train_transforms = ("random_crop(32, padding=4)", "flip", jitter, "rotation(2)")
    return config


def _cifar_adamw(config: ConfigDict, learning_rate: float, epochs: float) -> ConfigDict:
    schedule = dict(final=5e-6, warmup_epochs=5.0, cooldown=2.0)
    return _adamw(config, learning_rate, epochs=epochs, weight_decay=0.5, drop_path=0.05, **schedule)


def _imagenet_weights(config: ConfigDict, initial: str) -> ConfigDict:
    """Starts from weights of ImageNet: a run folder, or a folder of converted weights."""
    config.initial.weights = initial
    return config


def photographs(dataset: str, initial: str) -> ConfigDict:
    """XCiT-S12 on Flowers or Caltech-101 at 224 pixels and 8/255 by PGD-1, from weights of ImageNet at 8/255."""
    config = _photographs(dataset, initial)
    parts.photographs(_attacked(config, 8 / 255, 1), jitter=0.4)
    return _adamw(config, 5e-5, final=5e-6, warmup_epochs=5.0, epochs=20, weight_decay=0.5, drop_path=0.05)


def photographs_clean(dataset: str, initial: str) -> ConfigDict:
    """The same without an attack, with the canonical augmentation."""
    config = parts.clean(_photographs(dataset, initial))
    parts.canonical_augmentation(parts.photographs(config, more=(parts.RAND_AUGMENT,)))
    return _adamw(config, 5e-5, final=5e-6, warmup_epochs=5.0, epochs=20, weight_decay=0.05, drop_path=0.05)


def _photographs(dataset: str, initial: str) -> ConfigDict:
    config = parts.tfds(config_lib.base(), dataset, batch_size=512)
    parts.normalised(parts.model(config, "xcit_small_12_p16_224"), "half")
    config.objective.label_smoothing = 0.1
    parts.occasional(config, log_steps=5, validate_epochs=2.0, save_epochs=2.0)
    return _imagenet_weights(config, initial)

"""Vision transformers trained, attacked, evaluated and explained for adversarial robustness, in JAX.

`robust_vit.models`, `robust_vit.attacks` and `robust_vit.objectives` need only jax, flax and optax and know nothing of
devices, files or configurations; `robust_vit.data`, `robust_vit.training` and `robust_vit.evaluation` put them to work.
Commands: `python -m robust_vit.main` (train), `python -m robust_vit.evaluate`, `python -m robust_vit.convert`,
`python -m robust_vit.models`.
"""

from robust_vit import guard

__version__ = "0.1.0"

guard.install()

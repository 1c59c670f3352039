"""Vision transformers trained, attacked, evaluated and explained for adversarial robustness, in JAX.

`robust_vit.models`, `robust_vit.attacks` and `robust_vit.objectives` need only jax, flax and optax and know nothing of
devices, files or configurations; `robust_vit.data`, `robust_vit.training` and `robust_vit.evaluation` put them to work.
Each is imported when it is first asked for: `import robust_vit as rv` starts no JAX.
Commands: `python -m robust_vit.main` (train), `python -m robust_vit.evaluate`, `python -m robust_vit.convert`,
`python -m robust_vit.models`.
"""

from robust_vit import guard, lazy

__version__ = "0.1.0"

guard.install()

_MODULES = (
    *("analysis", "attacks", "config", "data", "errors", "evaluation", "models", "objectives", "parallel"),
    *("pixels", "provenance", "randomness", "training", "typing"),
)
_OBJECTS = {
    "Classifier": "classifier",
    "Threat": "threat",
    "from_numpy": "foreign",
    "from_torch": "foreign",
    "load": "loading",
}

__all__ = [*_MODULES, *_OBJECTS]
__getattr__, __dir__ = lazy.attach(__name__, modules=_MODULES, objects=_OBJECTS)

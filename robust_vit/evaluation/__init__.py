"""How accurate a classifier is, clean and under attack, and how sure that is: measurements, suites, reports."""

from robust_vit import lazy
from robust_vit.evaluation import masking
from robust_vit.evaluation.autoattack.driver import autoattack
from robust_vit.evaluation.intervals import wilson
from robust_vit.evaluation.measure import Measurement, Measurer, correct

__all__ = ["Measurement", "Measurer", "autoattack", "correct", "masking", "wilson"]
__getattr__, __dir__ = lazy.attach(__name__, modules=lazy.submodules(__path__))

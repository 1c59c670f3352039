"""Is this robustness real? A report on masked gradients: `report` runs it, `findings` says what each sign means."""

from robust_vit.evaluation.masking import findings
from robust_vit.evaluation.masking.report import Report, report

__all__ = ["Report", "findings", "report"]

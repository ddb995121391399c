"""Correction for the number of comparisons, over a whole declared family."""

from collections.abc import Sequence
from dataclasses import dataclass

from statsmodels.stats.multitest import multipletests

CORRECTIONS = ("holm", "fdr_bh", "fdr_by", "bonferroni")
"""Holm, Benjamini-Hochberg, Benjamini-Yekutieli, Bonferroni."""


@dataclass(frozen=True)
class Correction:
    """Corrected p-values and decisions, in the order of the family.

    Attributes:
        p_values: none for a comparison that has no p-value.
        rejected: whether the corrected p-value is at most `alpha`.
    """

    p_values: list[float | None]
    rejected: list[bool]
    method: str
    alpha: float


def multiple_comparison_correction(
    p_values: Sequence[float | None], alpha: float = 0.05, method: str = "fdr_bh"
) -> Correction:
    """Corrects the p-values of a whole family.

    A comparison without a p-value (none: not estimable) still counts as a member of the family,
    which keeps the correction of the others as strict as declared.

    Args:
        method: one of CORRECTIONS, or any other that statsmodels knows.

    Raises:
        ValueError: if the family is empty, a p-value is not in [0, 1], or the method is unknown.
    """
    if not p_values:
        raise ValueError("the family of comparisons is empty")
    known = [1.0 if p_value is None else float(p_value) for p_value in p_values]
    if not all(0 <= p_value <= 1 for p_value in known):
        raise ValueError(f"p-values must lie in [0, 1], got {known}")
    rejected, corrected, _, _ = multipletests(known, alpha=alpha, method=method)
    return Correction(
        p_values=[
            None if p_value is None else float(adjusted)
            for p_value, adjusted in zip(p_values, corrected, strict=True)
        ],
        rejected=[
            p_value is not None and bool(decision)
            for p_value, decision in zip(p_values, rejected, strict=True)
        ],
        method=method,
        alpha=alpha,
    )


def all_corrections(p_values: Sequence[float | None]) -> list[dict[str, float | None]]:
    """The p-values of a whole family under each of CORRECTIONS, in the order of the family.

    Raises:
        ValueError: as `multiple_comparison_correction`.
    """
    corrected = [multiple_comparison_correction(p_values, method=m).p_values for m in CORRECTIONS]
    return [dict(zip(CORRECTIONS, own, strict=True)) for own in zip(*corrected, strict=True)]

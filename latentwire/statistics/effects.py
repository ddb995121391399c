"""Effect sizes of paired comparisons."""

from numpy.typing import ArrayLike

from latentwire.statistics.clusters import ROUNDING, paired_scores


def cohens_d_paired(first: ArrayLike, second: ArrayLike) -> float | None:
    """Cohen's dz: mean over standard deviation of the differences, first minus second.

    None if fewer than two examples or constant differences leave it undefined.

    Raises:
        ValueError: if scores are empty, not finite, or differ in number.
    """
    a, b = paired_scores(first, second)
    differences = a - b
    if len(differences) < 2:
        return None
    spread = float(differences.std(ddof=1))
    if spread <= ROUNDING * max(abs(a).max(), abs(b).max()):
        return None
    return float(differences.mean()) / spread

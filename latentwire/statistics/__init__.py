"""Intervals and tests over examples clustered by passage.

What is exported here takes plain arrays and stands on numpy, scipy and statsmodels alone; `inputs`,
`metrics`, `comparisons` and `planning` apply it to an experiment.
"""

from latentwire.statistics.bootstrap import (
    Estimate,
    bootstrap_ci,
    bootstrap_ci_multiple_metrics,
)
from latentwire.statistics.classical import (
    independent_ttest,
    mcnemar_test,
    paired_ttest,
    wilcoxon_test,
)
from latentwire.statistics.correction import multiple_comparison_correction
from latentwire.statistics.effects import (
    cliffs_delta,
    cohens_d_paired,
    cohens_d_pooled,
    odds_ratio,
)
from latentwire.statistics.formatting import format_mean_ci, p_value_to_stars
from latentwire.statistics.paired import (
    NonInferiority,
    PairedTest,
    non_inferiority_test,
    paired_bootstrap_test,
    paired_permutation_test,
)
from latentwire.statistics.power import (
    estimate_required_samples,
    estimate_required_seeds_from_data,
    minimum_detectable_effect,
)
from latentwire.statistics.report import (
    ComparisonReport,
    compare_multiple_methods_to_baseline,
    comprehensive_comparison_report,
    generate_comparison_table,
)
from latentwire.statistics.seeds import aggregate_multiseed_results

__all__ = [
    "ComparisonReport",
    "Estimate",
    "NonInferiority",
    "PairedTest",
    "aggregate_multiseed_results",
    "bootstrap_ci",
    "bootstrap_ci_multiple_metrics",
    "cliffs_delta",
    "cohens_d_paired",
    "cohens_d_pooled",
    "compare_multiple_methods_to_baseline",
    "comprehensive_comparison_report",
    "estimate_required_samples",
    "estimate_required_seeds_from_data",
    "format_mean_ci",
    "generate_comparison_table",
    "independent_ttest",
    "mcnemar_test",
    "minimum_detectable_effect",
    "multiple_comparison_correction",
    "non_inferiority_test",
    "odds_ratio",
    "p_value_to_stars",
    "paired_bootstrap_test",
    "paired_permutation_test",
    "paired_ttest",
    "wilcoxon_test",
]

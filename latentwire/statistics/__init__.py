"""Intervals and tests over examples clustered by passage.

Everything but `inputs`, `metrics` and `comparisons` takes plain arrays and stands on numpy, scipy
and statsmodels alone.
"""

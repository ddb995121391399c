"""Numbers as people write them."""


def p_value_to_stars(p_value: float | None) -> str:
    """`***` up to .001, `**` up to .01, `*` up to .05, else nothing.

    Raises:
        ValueError: if the p-value is not in [0, 1].
    """
    if p_value is None:
        return ""
    if not 0 <= p_value <= 1:
        raise ValueError(f"a p-value must lie in [0, 1], got {p_value}")
    return "*" * sum(p_value <= level for level in (0.05, 0.01, 0.001))


def format_mean_ci(
    mean: float | None, ci: tuple[float, float] | None, decimals: int = 3, sign: bool = False
) -> str:
    """For example `0.612 [0.590, 0.634]`; what is missing is `not estimable`.

    Args:
        sign: write the plus of positive numbers too, as of differences.
    """
    style = f"{'+' if sign else ''}.{decimals}f"
    if mean is None:
        return "not estimable"
    interval = "not estimable" if ci is None else f"{ci[0]:{style}}, {ci[1]:{style}}"
    return f"{mean:{style}} [{interval}]"


def format_p_value(p_value: float | None) -> str:
    """To three decimals, or `<0.001`; none is `-`."""
    if p_value is None:
        return "-"
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"

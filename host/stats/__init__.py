"""Pure statistics on blocks: intervals, paired comparisons, change points, Pareto fronts."""

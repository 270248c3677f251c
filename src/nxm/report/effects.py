"""The size of a difference between two methods, and the smallest that the data could have shown.

An interval by the bootstrap says which differences the data are compatible with. The functions here add the size of
the difference relative to the spread over seeds, the probability that the better method is better with one more seed,
the correction for showing many comparisons at once, and the smallest difference that the data could have shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import gamma, sqrt

import numpy as np
from scipy import stats

from nxm.report import statistics
from nxm.report.evidence import Evidence
from nxm.report.statistics import Interval

Comparison = tuple[str, str, tuple[str, ...]]  # a run, the one it is compared with, the tasks
FIELDS = ("effect", "better", "p", "p_adjusted", "visible")
EXPLAINED = {  # by the column in which `texts` prints it
    "Effect": "Hedges' g over paired seeds, the mean difference in standard deviations, corrected for few seeds",
    "P(better)": "the probability that the run is ahead with one more seed, by Student's t around the mean",
    "p": "of no difference, by the paired bootstrap",
    "p, adjusted": "for all differences of this table together, by the bootstrap of the largest statistic",
    "Visible from": "the smallest true difference that data like these show with a probability of 80 %",
}


@dataclass(frozen=True)
class Difference:
    """A difference between two runs, and how far the data carry it.

    Attributes:
        interval: in percent points.
        effect: Hedges' g over paired seeds.
        better: the probability that the run is better than its rival with one more seed.
        p, adjusted: p-values: alone, and for all differences that are shown together.
        visible: the smallest true difference that these data would show, with a probability of 80 %.
    """

    study: str
    run: str
    rival: str
    tasks: tuple[str, ...]
    interval: Interval
    effect: float | None
    better: float | None
    p: float
    adjusted: float
    visible: float

    @property
    def values(self) -> dict[str, float | None]:
        """The numbers of `FIELDS`, at full precision."""
        own = (self.effect, self.better, self.p, self.adjusted, self.visible)
        return dict(zip(FIELDS, own, strict=True))


def measured(evidence: Evidence, asked: Iterable[Comparison]) -> dict[Comparison, Difference]:
    """Return the differences between runs that are shown together; those without draws of the bootstrap are left out.

    Being shown together is what the adjusted p-values correct for.
    """
    intervals, drawn = {}, {}
    for run, rival, tasks in dict.fromkeys(asked):
        interval = statistics.difference(evidence, run, rival, list(tasks))
        ours, theirs = (statistics.draws(evidence, name, list(tasks)) for name in (run, rival))
        if interval is not None and interval.low is not None and ours is not None and theirs is not None:
            intervals[run, rival, tasks] = interval
            drawn[run, rival, tasks] = ours - theirs
    adjusted = dict(zip(drawn, largest_statistic({str(key): own for key, own in drawn.items()}).values(), strict=True))
    found = {}
    for key, interval in intervals.items():
        run, rival, tasks = key
        by_seed = [statistics.seed_scores(evidence.results, one, list(tasks)) for one in (run, rival)]
        paired = [by_seed[0][seed] - by_seed[1][seed] for seed in sorted(by_seed[0].keys() & by_seed[1].keys())]
        alone = p_value(drawn[key])
        # among few draws one side's share, of which `alone` is twice, can exceed the largest statistic's
        own = (effect_size(paired), better_with_a_new_seed(paired), alone, max(alone, adjusted[key]))
        found[key] = Difference(evidence.study, *key, interval, *own, smallest_visible(drawn[key]))
    return found


def texts(difference: Difference | None) -> dict[str, str]:
    """Return the cells of a difference under the headings of `EXPLAINED`."""
    if difference is None:
        return dict.fromkeys(EXPLAINED, statistics.ABSENT)
    forms = ("+.1f", ".2f", ".3f", ".3f", ".1f")
    cells = [
        statistics.ABSENT if value is None else format(value, form)
        for value, form in zip(difference.values.values(), forms, strict=True)
    ]
    return dict(zip(EXPLAINED, cells, strict=True))


def notes(several_seeds: bool) -> tuple[str, ...]:
    """Return the notes below a table with the cells of `texts`."""
    lines = tuple(f"{column}: {words}." for column, words in EXPLAINED.items())
    lines += ('A difference below "Visible from" may be there although its interval includes 0.',)
    if several_seeds:
        return (*lines, "With three seeds Effect and P(better) are rough.")
    return (*lines, "One seed: neither Effect nor P(better) is known.")


def effect_size(differences: Sequence[float]) -> float | None:
    """Return the standardised mean of paired differences over seeds, corrected for few seeds (Hedges' g).

    The mean divided by the sample standard deviation, times the exact factor of Hedges (1981) for n - 1 degrees of
    freedom: uncorrected, three seeds overstate the effect by three quarters. About 0.2 is small, 0.8 large
    (Cohen). None with fewer than three seeds, for which the factor does not exist, and without any spread.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 3 or values.std(ddof=1) == 0:
        return None
    free = len(values) - 1
    factor = gamma(free / 2) / (sqrt(free / 2) * gamma((free - 1) / 2))
    return float(factor * values.mean() / values.std(ddof=1))


def better_with_a_new_seed(differences: Sequence[float]) -> float | None:
    """Return the probability that the difference with one more seed is positive, given those of some seeds.

    It is the predictive distribution of a normal sample with unknown mean and variance (flat prior): Student's t with
    n - 1 degrees of freedom around the mean, whose scale is that of the differences times sqrt(1 + 1 / n) (Gelman et
    al., Bayesian Data Analysis, section 3.2). None with one seed; without any spread 0, 0.5 or 1.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) < 2:
        return None
    if values.std(ddof=1) == 0:
        return float((1 + np.sign(values[0])) / 2)
    scale = values.std(ddof=1) * sqrt(1 + 1 / len(values))
    return float(stats.t.cdf(values.mean() / scale, len(values) - 1))


def p_value(draws: np.ndarray) -> float:
    """Return the two-sided p-value of no difference, from the difference in each draw of the bootstrap, (draws,).

    Twice the share of draws on the rarer side of zero: below 0.05 where the 95 % percentile interval excludes zero.
    With the observed value counted as one more draw it is never 0 (Davison & Hinkley 1997, chapter 4).
    """
    rarer = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(min(1.0, 2 * (rarer + 1) / (len(draws) + 1)))


def largest_statistic(draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return p-values adjusted for many comparisons by the bootstrap of the largest statistic (Westfall & Young 1993).

    A comparison whose adjusted value is below 0.05 would be shown by mistake, together with any other one, in at most
    one of twenty such studies. Comparisons that share a method or the dev examples are correlated, which Bonferroni's
    and Holm's corrections do not use; and those need p-values finer than 1,000 draws give.

    Args:
        draws: comparison -> the difference in each draw, (draws,); the draws are the same for all.

    Returns: comparison -> the share of draws in which the largest standardised deviation from its mean, over all
        comparisons, is as large as the comparison's own standardised difference.
    """
    if not draws:
        return {}
    values = np.stack([np.asarray(own, dtype=float) for own in draws.values()])  # (comparisons, draws)
    means, spread = values.mean(axis=1), values.std(axis=1, ddof=1)
    safe = np.where(spread > 0, spread, 1.0)
    largest = np.abs((values - means[:, None]) / safe[:, None]).max(axis=0)
    own = np.where(spread > 0, np.abs(means) / safe, np.where(means == 0, 0.0, np.inf))
    shares = ((largest[None, :] >= own[:, None]).sum(axis=1) + 1) / (values.shape[1] + 1)
    return dict(zip(draws, map(float, shares), strict=True))


def smallest_visible(draws: np.ndarray, level: float = 0.95, power: float = 0.8) -> float:
    """Return the smallest true difference that data like these would show with probability `power`.

    "Shown" means that the interval of `level` excludes zero: (z of (1 + level) / 2 plus z of power) times the standard
    error, which is the standard deviation of the bootstrap's draws, (draws,). By default 2.8 standard errors.
    """
    return float((stats.norm.ppf((1 + level) / 2) + stats.norm.ppf(power)) * np.std(draws, ddof=1))

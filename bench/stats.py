"""Whether two kinds of work take the same time: pure functions over samples that were taken in turns.

Rules of this file: nothing here measures. Samples come in blocks, each with a few of every class, taken in random order
within milliseconds: whatever drifts between blocks (frequency, temperature, neighbours) is the same for all classes of
one, so differences are taken within blocks, and their uncertainty from how the blocks differ. A single long delay moves
a mean, so none is taken of all: a block's centre is the mean of its middle half (a median would see nothing finer than
the clock's tick), and Welch's t looks at the fastest part of all samples alone, as dudect does (Reparaz, Balasch,
Verbauwhede: "Dude, is my code constant time?", 2017).
"""

import bisect
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

Block = Mapping[str, Sequence[float]]  # samples by class

CONFIDENCE: Final = 0.995  # of one interval, so that five comparisons have 0.975 together
RESAMPLES: Final = 4000
CROP: Final = 0.9  # of all samples of two classes together: what is slower was held up by something else


@dataclass(frozen=True)
class Difference:
    """How much longer one class took than another, in the samples' unit."""

    name: str
    apart: float  # the median of the blocks' differences of centres
    low: float  # its confidence interval, by bootstrap over blocks
    high: float
    t: float  # Welch's, of the fastest CROP of both
    effect: float  # Mann-Whitney: how much likelier than not a sample is the longer one, -0.5 to 0.5

    @property
    def noise(self) -> float:
        """Half of the interval: what is smaller could not be seen."""
        return (self.high - self.low) / 2

    @property
    def told(self) -> bool:
        """Whether the two can be told apart at all."""
        return self.low > 0 or self.high < 0

    def above(self, bound: float) -> bool:
        """Whether it is certainly there and larger than this."""
        return self.told and abs(self.apart) > bound

    def within(self, bound: float) -> bool:
        """Whether it is certainly no larger than this, be it there or not."""
        return max(abs(self.low), abs(self.high)) <= bound


def compare(blocks: Sequence[Block], base: str, rng: random.Random) -> list[Difference]:
    """Every other class beside the base. All blocks have the same classes; some thirty of them make an interval."""
    centres = [{name: centre(samples) for name, samples in block.items()} for block in blocks]
    others = [name for name in blocks[0] if name != base]
    pooled = {name: sorted(sample for block in blocks for sample in block[name]) for name in (base, *others)}
    found = []
    for name in others:
        apart = [each[name] - each[base] for each in centres]
        low, high = interval(apart, rng)
        t = welch(*cropped(pooled[name], pooled[base]))
        found.append(
            Difference(name, statistics.median(apart), low, high, t, superiority(pooled[name], pooled[base]) - 0.5)
        )
    return found


def largest(differences: Sequence[Difference]) -> Difference:
    """The one that is furthest from nothing."""
    return max(differences, key=lambda difference: abs(difference.apart))


def centre(samples: Sequence[float]) -> float:
    """The mean of the middle half."""
    quarter = len(samples) // 4
    return statistics.fmean(sorted(samples)[quarter : len(samples) - quarter])


def interval(
    values: Sequence[float], rng: random.Random, confidence: float = CONFIDENCE, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """The median's confidence interval: percentiles of the medians of resamples (Efron 1979)."""
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(resamples))
    outside = int(resamples * (1 - confidence) / 2)
    return medians[outside], medians[-1 - outside]


def cropped(a: Sequence[float], b: Sequence[float], part: float = CROP) -> tuple[Sequence[float], Sequence[float]]:
    """Of both, sorted, what is no slower than that part of all of them together."""
    together = sorted((*a, *b))
    most = together[min(len(together) - 1, int(part * len(together)))]
    return a[: bisect.bisect_right(a, most)], b[: bisect.bisect_right(b, most)]


def welch(a: Sequence[float], b: Sequence[float]) -> float:
    """Welch's t: positive where `a` is larger; 0 where nothing varies and nothing differs."""
    apart = statistics.fmean(a) - statistics.fmean(b)
    error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    return apart / error if error else math.copysign(math.inf, apart) if apart else 0.0


def superiority(a: Sequence[float], b: Sequence[float]) -> float:
    """The chance that one of `a` is larger than one of `b`, ties by half (Mann-Whitney's U); both sorted."""
    less = sum(bisect.bisect_left(b, value) + bisect.bisect_right(b, value) for value in a)
    return less / (2 * len(a) * len(b))

"""The fake TGI server's `/metrics`: counters, gauges and histograms of section 3.2 of tgi-facts.md."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable

# 35 buckets from 0.00015 s, each 1.5 times the one before
SECONDS = tuple(0.00015 * 1.5**power for power in range(35))
COUNTS = tuple(range(32, 4097, 32))
_QUANTILES = ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1")


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def lines(self, name: str, labels: str) -> Iterable[str]:
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            inside = ",".join(filter(None, [labels, f'le="{bound}"']))
            yield f"{name}_bucket{{{inside}}} {total}"
        braced = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braced} {self.sum}"
        yield f"{name}_count{braced} {total}"


class Metrics:
    """What was counted, set and observed so far; nothing is shown before its first use."""

    def __init__(self) -> None:
        self._counters: Counter[str] = Counter()
        self._gauges: dict[str, float] = {}
        self._histograms: dict[str, _Histogram] = {}
        self._unbucketed: Counter[str] = Counter()

    def count(self, name: str, labels: str = "", by: int = 1) -> None:
        """Raise a counter; ``labels`` such as ``err="overloaded"``."""
        self._counters[f"{name}{{{labels}}}" if labels else name] += by

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._gauges[name] = value

    def observe(self, name: str, value: float, bounds: tuple[float, ...] = SECONDS, labels: str = "") -> None:
        """Add to a histogram of the given buckets."""
        key = f"{name}{{{labels}"
        if key not in self._histograms:
            self._histograms[key] = _Histogram(bounds)
        histogram = self._histograms[key]
        histogram.counts[bisect_left(histogram.bounds, value)] += 1
        histogram.sum += value

    def observe_zero(self, name: str) -> None:
        """Add a zero to a histogram without buckets, which is shown as a summary."""
        self._unbucketed[name] += 1

    def text(self) -> str:
        """All of it in Prometheus' text form."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterable[str]:
        typed: set[str] = set()

        def heading(name: str, kind: str) -> Iterable[str]:
            if name not in typed:
                typed.add(name)
                yield f"# TYPE {name} {kind}"

        for kind, values in (("counter", self._counters), ("gauge", self._gauges)):
            for sample, value in sorted(values.items()):
                yield from heading(sample.partition("{")[0], kind)
                yield f"{sample} {value}"
        for key, histogram in sorted(self._histograms.items()):
            name, _, labels = key.partition("{")
            yield from heading(name, "histogram")
            yield from histogram.lines(name, labels)
        for name, count in sorted(self._unbucketed.items()):
            yield from heading(name, "summary")
            yield from (f'{name}{{quantile="{quantile}"}} 0' for quantile in _QUANTILES)
            yield from (f"{name}_sum 0", f"{name}_count {count}")

"""Renders what was counted for Prometheus: its text format, or OpenMetrics where that is asked for."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from server.telemetry.catalogue import CATALOGUE, WORKER, Metric
from server.telemetry.tally import Key, Series


def render(workers: Mapping[int, Series], once: Series, accept: str) -> tuple[str, bytes]:
    """Render everything: the content type, and the text. `once` is what is of the whole server."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Reading(workers, once))
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)


class _Reading(Collector):
    """One reading, in the catalogue's order."""

    def __init__(self, workers: Mapping[int, Series], once: Series) -> None:
        self._series = {str(number): _by_metric(series) for number, series in workers.items()}
        self._once = _by_metric(once)

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterator[Family]:
        for metric in CATALOGUE:
            if metric.once:
                rows = [(key[1:], value) for key, value in self._once.get(metric.name, ())]
            else:
                of = self._series.items()
                rows = [((*key[1:], number), value) for number, all_ in of for key, value in all_.get(metric.name, ())]
            if rows:
                yield _make_family(metric, rows)


def _by_metric(series: Series) -> dict[str, list[tuple[Key, float | list[float]]]]:
    found: dict[str, list[tuple[Key, float | list[float]]]] = {}
    for key, value in sorted(series.items(), key=lambda entry: entry[0]):
        found.setdefault(key[0], []).append((key, value))
    return found


def _make_family(metric: Metric, rows: Iterable[tuple[Key, float | list[float]]]) -> Family:
    labels = metric.labels if metric.once else (*metric.labels, WORKER)
    if metric.kind == "histogram":
        family = HistogramMetricFamily(metric.name, metric.about, labels=labels)
        for values, held in rows:
            assert isinstance(held, list)
            family.add_metric(values, _accumulate(metric.bounds, held), held[-1])
        return family
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    simple = kind(metric.name, metric.about, labels=labels)
    for values, value in rows:
        assert not isinstance(value, list)
        simple.add_metric(values, value)
    return simple


def _accumulate(bounds: tuple[float, ...], held: list[float]) -> list[tuple[str, float]]:
    """Turn how many fell between the bounds into how many fell under each, as Prometheus has it."""
    total, buckets = 0.0, []
    for bound, count in zip((*map(str, bounds), "+Inf"), held, strict=False):
        total += count
        buckets.append((bound, total))
    return buckets

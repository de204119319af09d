"""What the server counts, in the form that Prometheus reads.

Requests are counted as they happen; what other parts count is asked for when somebody looks, by
the functions that app.py registers here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "edgefleet"
Source = Callable[[], Any]
"""Returns a mapping or a dataclass of numbers; one level of mappings becomes a label."""


class Metrics(Collector):
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._sources: dict[str, Source] = {}
        self.requests = Counter(
            f"{PREFIX}_http_requests",
            "HTTP requests by method, path template and status.",
            ("method", "path", "status"),
            registry=self._registry,
        )
        self.response_bytes = Counter(
            f"{PREFIX}_http_response_bytes",
            "Bytes of response bodies, by method and path template.",
            ("method", "path"),
            registry=self._registry,
        )
        self.seconds = Histogram(
            f"{PREFIX}_http_seconds",
            "Time until the response was complete.",
            ("method", "path"),
            registry=self._registry,
        )
        self._registry.register(self)

    def add_source(self, name: str, source: Source) -> None:
        """Show what ``source`` returns as ``edgefleet_<name>_<key>``."""
        self._sources[name] = source

    def collect(self) -> Iterable[Metric]:
        """Ask every source."""
        for name, source in sorted(self._sources.items()):
            found = source()
            values: Mapping[str, Any] = (
                asdict(found)
                if is_dataclass(found) and not isinstance(found, type)
                else dict(found)
            )
            for key, value in sorted(values.items()):
                yield _family(f"{PREFIX}_{name}_{key}", value)

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the sources are there."""
        return ()

    def exposition(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


def _family(name: str, value: Any) -> Metric:
    words = name.removeprefix(f"{PREFIX}_").replace("_", " ")
    if isinstance(value, Mapping):
        family = GaugeMetricFamily(name, f"{words}, by kind.", labels=("kind",))
        for kind, number in value.items():
            family.add_metric((str(kind),), float(number))
        return family
    return GaugeMetricFamily(name, f"{words}.", value=float(value))

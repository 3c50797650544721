"""What Prometheus asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from restore.multicast.server.room import ENDS
from restore.multicast.server.view import Row, State, View

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MOST_LISTED: Final = 256  # clients with metrics of their own; where there are more, none has
_CLIENT: Final = ("id", "client", "address")


def metrics(view: View) -> bytes:
    """All metrics of a moment, in Prometheus' text format 0.0.4."""
    registry = CollectorRegistry()
    registry.register(_Once(view))
    return generate_latest(registry)


class _Once(Collector):
    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterable[Metric]:
        """The metrics of a view."""
        view = self._view
        image = GaugeMetricFamily("asr_image_size_bytes", "Size of the image that is streamed", labels=["image"])
        image.add_metric([view.image], view.size)
        yield image
        yield CounterMetricFamily("asr_sent_bytes", "Bytes sent to the group, headers included", view.sent)
        yield CounterMetricFamily("asr_passes", "How often the stream has begun or gone back", view.loop)
        if view.limit is not None:
            yield GaugeMetricFamily("asr_rate_limit_bytes", "Bytes per second at most, at this moment", view.limit)
        clients = GaugeMetricFamily("asr_clients", "Clients that take part", labels=["state"])
        for state in State:
            if state not in (State.DONE, State.FAILED, State.LEFT):
                clients.add_metric([state.value], view.states.get(state.value, 0))
        yield clients
        ended = CounterMetricFamily("asr_ended_clients", "Clients that do not take part any more", labels=["end"])
        for end in ENDS:
            ended.add_metric([end], view.ends.get(end, 0))
        yield ended
        there = [row for row in view.rows if row.here]
        if len(there) > MOST_LISTED:
            return
        of_each: tuple[tuple[str, str, Callable[[Row], float]], ...] = (
            ("received_ratio", "What it has of what it lacked", lambda row: row.received / 100),
            ("written_ratio", "What is on its target of the image", lambda row: row.written / 100),
            ("verified_ratio", "What was compared of the image", lambda row: row.verified / 100),
            ("rate_bytes", "Bytes per second that come", lambda row: row.rate),
            ("loss_ratio", "Datagrams that got lost, of all", lambda row: row.loss),
        )
        for name, text, value in of_each:
            family = GaugeMetricFamily(f"asr_client_{name}", text, labels=_CLIENT)
            for row in there:
                family.add_metric([row.id, row.name, row.address], value(row))
            yield family

"""The whole stream without its sockets: what a carousel says is sent as datagrams, and assemblies put them together."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from restore.multicast.assembly import TICK, Assembly
from restore.multicast.carousel import Carousel, Turn
from restore.multicast.chunkset import ChunkSet
from restore.multicast.packet import Header, segments_of
from tests.restore.multicast.images import SESSION, datagrams, image, layout, repairs
from tests.support import examples

UNIT = 16 << 10
SIZE = 512
COUNT = 6
LAST = 5000
DATA = image(1, (COUNT - 1) * UNIT + LAST)
LAYOUT = layout(DATA, UNIT)
SEGMENTS = [segments_of(LAYOUT.length(chunk), SIZE) for chunk in range(COUNT)]
ROOM = 3  # chunks that a client may have begun


@dataclass
class Client:
    """One that loses this part, has this part come twice, and that part late."""

    name: str
    loss: float
    again: float
    late: float
    assembly: Assembly
    found: dict[int, bytes] = field(default_factory=dict)
    on_its_way: deque[bytes] = field(default_factory=deque)

    def pass_on(self, chance: random.Random, sent: list[bytes]) -> None:
        """What is sent to all comes to this one, or does not, by and by."""
        for each in sent:
            if chance.random() < self.loss:
                continue
            self.on_its_way.append(each)
            if chance.random() < self.again:
                self.on_its_way.insert(chance.randrange(len(self.on_its_way)), each)
        stays = []
        batch: list[bytes] = []
        most = min(44, self.assembly.batch)
        while self.on_its_way:
            if chance.random() < self.late:
                stays.append(self.on_its_way.popleft())
                continue
            batch.append(self.on_its_way.popleft())
            if len(batch) == chance.randint(1, most) or len(batch) == most:
                self._land(batch)
                batch = []
        if batch:
            self._land(batch)
        chance.shuffle(stays)
        self.on_its_way.extend(stays)

    def _land(self, batch: list[bytes]) -> None:
        joined, at = b"".join(batch), 0
        for view in self.assembly.landing():
            part = joined[at : at + len(view)]
            view[: len(part)] = part
            at += len(part)
        for whole in self.assembly.landed(len(joined)):
            assert whole.chunk not in self.found, "a chunk that was there already"
            self.found[whole.chunk] = bytes(whole.data)
        assert self.assembly.incomplete <= ROOM


def datagrams_of(turn: Turn) -> list[bytes]:
    sent = datagrams(DATA, turn.chunk, turn.sequence, SIZE, UNIT) if turn.segments else []
    if turn.repairs:
        sent += repairs(DATA, turn.chunk, turn.sequence, turn.first_repair, turn.repairs, SIZE, UNIT)
    return sent


@examples(40)
@given(
    seed=st.integers(0, 1 << 30),
    losses=st.lists(st.floats(0, 0.6), min_size=1, max_size=5),
    again=st.floats(0, 0.5),
    late=st.floats(0, 0.5),
    fec=st.sampled_from([0.0, 0.1]),
)
def test_every_client_ends_with_the_image(
    seed: int, losses: list[float], again: float, late: float, fec: float
) -> None:
    """Whatever is lost short of all, comes late, twice or in another order, and whenever they come."""
    chance = random.Random(seed)
    carousel = Carousel(COUNT, segments=SEGMENTS.__getitem__, fec=fec)
    coming = [
        Client(str(at), loss, again, late, Assembly(LAYOUT, SIZE, SESSION, ChunkSet.full(COUNT), ROOM))
        for at, loss in enumerate(losses)
    ]
    here: list[Client] = []
    sent = ended = 0
    for now in range(20_000):
        if coming and (not here or chance.random() < 0.1):
            client = coming.pop()
            here.append(client)
            carousel.join(client.name, client.assembly.wanted.copy(), now)
        turn = carousel.next()
        if turn is None:
            datagrams_now = [Header(SESSION, carousel.sequence, TICK, 0).pack() + bytes(SIZE)]
        else:
            datagrams_now = datagrams_of(turn)
            assert len(datagrams_now) == turn.segments + turn.repairs
            sent += len(datagrams_now)
        for client in list(here):
            client.pass_on(chance, datagrams_now)
            if turn is None or chance.random() < 0.3 or not client.assembly.wanted:
                to = client.assembly
                carousel.report(client.name, to.wanted.copy(), to.sequence, now, to.missing(COUNT))
            if not client.assembly.wanted:
                assert b"".join(client.found[chunk] for chunk in range(COUNT)) == DATA
                here.remove(client)
                carousel.leave(client.name)
                ended += 1
        if not coming and not here:
            break
    assert ended == len(losses), f"{[(each.name, list(each.assembly.wanted)) for each in here]} never came"
    assert carousel.sequence == sent

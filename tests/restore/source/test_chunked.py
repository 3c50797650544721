from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbd.backend import Extent
from nbd.connection import FileRange
from restore.source import SourceError
from restore.source.chunked import AHEAD, KEPT, ChunkedSource
from tests.support import assert_same_bytes, examples, wait_until

MIB = 1 << 20
DATA = random.Random(2).randbytes(8 * MIB)


class Boxes:
    """An image of chunks of any lengths, some of them holes, some of them plain."""

    name = "boxes"

    def __init__(self, kinds: list[tuple[int, str]], data: bytes = DATA) -> None:
        self.kinds, position = [], 0
        for length, kind in kinds:
            self.kinds.append((position, position + length, kind))
            position += length
        self.size = position
        self.data = data
        self.decoded: Counter[int] = Counter()
        self.closed = False

    def content(self, offset: int, length: int) -> bytes:
        found = b""
        for start, end, kind in self.kinds:
            first, last = max(start, offset), min(end, offset + length)
            if first < last:
                found += (
                    bytes(last - first) if kind == "hole" else self.data[start % MIB + first - start :][: last - first]
                )
        return found

    def extents(self) -> Iterator[Extent]:
        for start, end, kind in self.kinds:
            yield Extent(end - start, hole=kind == "hole", zero=kind == "hole")

    def chunk(self, offset: int) -> tuple[int, int]:
        return next((start, end) for start, end, _ in self.kinds if start <= offset < end)

    def decode(self, start: int, end: int) -> bytes:
        assert not self.closed
        self.decoded[start] += 1
        return self.content(start, end - start)

    def plain(self, offset: int, length: int) -> FileRange | None:
        _, end, kind = next(k for k in self.kinds if k[0] <= offset < k[1])
        return FileRange(99, offset) if kind == "plain" and offset + length <= end else None

    def check_unchanged(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


boxes = st.lists(st.tuples(st.integers(1, MIB), st.sampled_from(["data", "data", "hole", "plain"])), min_size=1)


@given(boxes, st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(1, MIB))), st.integers(1, 4))
@examples(60)
def test_any_range_at_any_time(kinds: list[tuple[int, str]], reads: list[tuple[int, int]], workers: int) -> None:
    image = Boxes(kinds)
    source = ChunkedSource(image, workers=workers)
    readers = [source, source.reader(), source.reader()]
    for number, (offset, length) in enumerate(reads):
        offset %= image.size
        length = min(length, image.size - offset)
        payload = readers[number % 3].payload(offset, length)
        if isinstance(payload, FileRange):
            assert payload.offset == offset
        else:
            assert_same_bytes(payload, image.content(offset, length))
    for reader in reversed(readers):
        reader.close()
    assert image.closed


def test_each_chunk_is_decoded_once_however_many_read() -> None:
    """Read in order, by three readers of which one is a little behind."""
    image = Boxes([(MIB, "data"), (MIB, "hole"), (MIB // 2, "data"), (MIB, "plain")] * 20)
    source = ChunkedSource(image, workers=2)
    readers = [source, source.reader(), source.reader()]
    wanted = [(start, end - start) for start, end, kind in image.kinds if kind == "data"]
    for index in range(len(wanted) + 3):
        for reader, late in zip(readers, (0, 0, 3), strict=True):
            if 0 <= index - late < len(wanted):
                assert_same_bytes(bytes(reader.payload(*wanted[index - late])), image.content(*wanted[index - late]))  # type: ignore[arg-type]
    source.close()
    assert set(image.decoded.values()) == {1}
    assert set(image.decoded) == {start for start, _ in wanted}, "a hole or a plain chunk was decoded"


def test_what_is_forgotten_is_decoded_anew() -> None:
    """And so it is for other readers; what was handed out stays as it is."""
    image = Boxes([(MIB, "data"), (MIB, "data"), (MIB, "data")])
    source = ChunkedSource(image, workers=1)
    other = source.reader()
    before = source.payload(MIB, MIB)
    image.data = bytes(reversed(DATA))
    assert source.payload(MIB, MIB) is not None
    assert_same_bytes(bytes(source.payload(MIB, MIB)), DATA[:MIB])  # type: ignore[arg-type]
    source.forget(MIB + 5, MIB)  # a part of two chunks
    for reader in (source, other):
        assert_same_bytes(bytes(reader.payload(MIB, MIB)), image.content(MIB, MIB))  # type: ignore[arg-type]
    assert_same_bytes(bytes(before), DATA[:MIB])  # type: ignore[arg-type]
    assert image.decoded == {0: 1, MIB: 2, 2 * MIB: 2} or image.decoded == {MIB: 2, 2 * MIB: 2}
    source.close()


def test_a_plain_range_is_forgotten_by_the_kernel(tmp_path: Path) -> None:
    """What it keeps of the file; nothing else would be read anew."""
    path = tmp_path / "image"
    path.write_bytes(DATA)
    with path.open("rb") as file:
        os.fsync(file.fileno())

        class Plain(Boxes):
            def plain(self, offset: int, length: int) -> FileRange | None:
                return FileRange(file.fileno(), offset)

        source = ChunkedSource(Plain([(8 * MIB, "plain")]))
        source.forget(MIB, MIB)
        assert isinstance(source.payload(MIB, MIB), FileRange)
        source.close()


def test_decoding_is_ahead_and_on_several_cores() -> None:
    running, most = 0, 0
    lock = threading.Lock()

    class Slow(Boxes):
        def decode(self, start: int, end: int) -> bytes:
            nonlocal running, most
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.02)
            with lock:
                running -= 1
            return super().decode(start, end)

    image = Slow([(MIB, "data")] * 100)
    source = ChunkedSource(image, workers=3)
    source.payload(0, 1)
    wait_until(lambda: len(image.decoded) >= AHEAD // MIB, "read-ahead")
    time.sleep(0.1)
    assert most == 3
    assert AHEAD // MIB <= len(image.decoded) <= AHEAD // MIB + 2, "more than it may"
    source.close()


def test_memory_is_bounded() -> None:
    size = 300 * MIB
    image = Boxes([(MIB, "data")] * (size // MIB))
    source = ChunkedSource(image, workers=2)
    for offset in range(0, size, MIB):
        source.payload(offset, MIB)
    assert set(image.decoded.values()) == {1}
    kept = KEPT // MIB
    source.payload(size - kept // 2 * MIB, MIB)
    assert set(image.decoded.values()) == {1}
    source.payload(0, MIB)
    assert image.decoded[0] == 2
    source.close()


def test_a_damaged_chunk_is_told_to_who_reads_it_and_nobody_else() -> None:
    class Damaged(Boxes):
        def decode(self, start: int, end: int) -> bytes:
            if start == 3 * MIB:
                raise SourceError("boxes is damaged at byte 3145728")
            return super().decode(start, end)

    source = ChunkedSource(Damaged([(MIB, "data")] * 6))
    for number in (0, 1, 2, 4, 5):
        source.payload(number * MIB, MIB)
    for _ in range(2):
        with pytest.raises(SourceError, match="damaged at byte 3145728"):
            source.payload(3 * MIB - 1, 2)
    source.close()


def test_several_threads_at_once() -> None:
    image = Boxes([(MIB // 4 + number, "data") for number in range(24)])
    source = ChunkedSource(image)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        order = random.Random(seed)
        try:
            for _ in range(200):
                offset = order.randrange(image.size)
                length = min(order.randrange(1, MIB), image.size - offset)
                payload = source.payload(offset, length)
                assert not isinstance(payload, FileRange)
                assert_same_bytes(payload, image.content(offset, length))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.close()
    assert not failures


def test_a_plain_file_is_never_decoded(tmp_path: Path) -> None:
    from restore.source.raw import RawImage
    from restore.source.storage.file import LocalFile

    path = tmp_path / "image"
    path.write_bytes(DATA[:MIB])
    source = ChunkedSource(RawImage(LocalFile(str(path)), MIB))
    payload = source.payload(5, 100)
    assert isinstance(payload, FileRange)
    assert os.pread(payload.fd, 100, payload.offset) == DATA[5:105]
    source.close()


def test_a_small_part_does_not_keep_its_chunk_in_memory() -> None:
    source = ChunkedSource(Boxes([(MIB, "data")]))
    for length in (1, 4096, MIB // 5, MIB):
        payload = source.payload(0, length)
        assert isinstance(payload, memoryview)
        assert memoryview(payload.obj).nbytes <= 4 * length
    source.close()

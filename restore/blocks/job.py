"""The phases of a restore and of a verification, in asr's order.

    target, source and sizes checked → question → first MiB zeroed
    → everything behind it written, and verified while the rest is still being written; what differs is written again
    → first MiB written → verified

From the first zeroed MiB on, a failure leaves a target that is valid and empty.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar

from nbd.client import Operation
from nbd.connection import PayloadError
from nbd.errors import NBDError
from nbd.wire import Command
from restore.blocks.plan import HEAD, Kind, KnownZeroes, Piece, cut, operation, throttle
from restore.blocks.progress import Progress, showing
from restore.blocks.verify import Expected, Feed, Hasher, Verification, expected, payload_of
from restore.errors import Differences, Refused, RestoreError, join, say
from restore.fit.sizes import check_size
from restore.report import RESTORING, VERIFYING, Report
from restore.source import Arriving, Described, Forgetful, Payload, Source, SourceError
from restore.source.payload import as_memory
from restore.target import Target
from targetmode.disks.text import format_size

if TYPE_CHECKING:
    from restore.blocks.delta import Delta, Item

ATTEMPTS: Final = 3  # times that a range which differs is sent again
RESTARTS: Final = 5  # times that all is compared once more since the server may have been started again meanwhile
_LOOKED_AT: Final = 64  # ranges that differ in the end whose source is read once more
_PATIENCE: Final = 2.0  # seconds that an interrupted copy has to end by itself, and again when its connections are cut
_SWITCH: Final = 0.0005  # seconds a thread may keep the interpreter while the copying one waits for it
_AGAIN: Final = "the server may have been started again, so all that was compared is compared once more"
_T = TypeVar("_T")
_FAILURES: Final = (RestoreError, NBDError, OSError)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a restore is to be done.

    Attributes:
        verify: compare the target with the source.
        delta: ask the target first for what it has, and send only the rest.
        max_rate: most bytes of data per second, None for no limit.
        confirm: asked with one line before anything is erased; False ends the restore. None erases without asking.
        discarded: of a target that is a new file, which is thrown away if the restore fails: what there is then, as a
            clause. Nothing is erased first. None for every other target.
    """

    verify: bool = True
    delta: bool = False
    max_rate: int | None = None
    confirm: Callable[[str], bool] | None = None
    discarded: str | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What was done, for the report when all has come to its end.

    Attributes:
        summary: in one line.
        size: bytes of the image.
        seconds: that it took.
    """

    summary: str
    size: int
    seconds: float

    def tell(self, report: Report) -> None:
        """It is the end, well."""
        report.finished(self.summary, bytes=self.size, seconds=round(self.seconds, 3))


@asynccontextmanager
async def as_it_is(source: Source, target: Target) -> AsyncIterator[Source]:
    """Take an image as it is."""
    yield source


Fit = Callable[[Source, Target], AbstractAsyncContextManager[Source]]
"""Makes an image fit a target, or refuses it; see `restore.fit`."""


async def restore(
    open_target: Callable[[], Target],
    open_source: Callable[[], Source],
    settings: Settings,
    report: Report,
    fit: Fit = as_it_is,
) -> Done:
    """Put an image on a target.

    Args:
        open_target: called once, first.
        open_source: called once, after that.
        settings: how.
        report: told as it goes.
        fit: called once with both.

    Returns:
        What was done; the report is told by whoever has nothing more to do.

    Raises:
        RestoreError: it was refused, failed, was interrupted, or found differences; the message says in what state the
            target is.
        asyncio.CancelledError: interrupted before anything was touched.
    """
    sys.setswitchinterval(_SWITCH)
    async with _opened(open_target, open_source, fit, report) as (target, source):
        return await _Restore(target, source, settings, report).run()


async def verify(
    open_target: Callable[[], Target], open_source: Callable[[], Source], report: Report, fit: Fit = as_it_is
) -> None:
    """Compare a target with an image, as far as the image goes.

    Raises:
        Differences: they differ.
        RestoreError: they could not be compared.
    """
    async with _opened(open_target, open_source, fit, report) as (target, source):
        progress = Progress(report, {VERIFYING: lambda: source.expected_size})
        started = time.monotonic()
        try:
            async with Verification(source, target, lambda n: progress.add(VERIFYING, n), report.note) as check:
                with showing(progress):
                    doubts = _Doubts(report)
                    while True:
                        generation = target.generation
                        different = await check.compare_all(_fitting(cut(source.extents(), 0), source, target))
                        if generation == target.generation:
                            break
                        doubts.again()
            await asyncio.to_thread(source.check_unchanged)
        except _FAILURES as error:
            raise RestoreError(f"the comparison failed: {say(error)}") from error
        except ExceptionGroup as group:
            raise RestoreError(f"the comparison failed: {say(_first(group))}") from group
        progress.complete(VERIFYING)
        if different:
            ranges = join([(piece.offset, piece.length) for piece in different])
            raise Differences(f"{target.name} differs from {source.name}", ranges)
        _done("Compared", source.least_size, time.monotonic() - started, "every block is the same").tell(report)


@asynccontextmanager
async def _opened(
    open_target: Callable[[], Target], open_source: Callable[[], Source], fit: Fit, report: Report
) -> AsyncIterator[tuple[Target, Source]]:
    """Target and source, open and found to fit."""
    with closing(await _phase(report, "Validating target", open_target)) as target:  # noqa: SIM117 - one after the other
        with closing(await _phase(report, "Validating source", open_source)) as source:
            async with fit(source, target) as fitting:
                check_size(fitting, target)
                yield target, fitting


class _Restore:
    """One restore, from the question on."""

    def __init__(self, target: Target, source: Source, settings: Settings, report: Report) -> None:
        self._target = target
        self._source = source
        self._settings = settings
        self._report = report
        self._head = min(HEAD, source.least_size)
        self._erased = self._head_written = self._begun = False
        self._empty = f"{target.name} is left empty"
        self._stopping = threading.Event()
        self._written = 0  # bytes, zeroes included
        self._doubts = _Doubts(report)
        totals = {RESTORING: lambda: max(source.expected_size - self._head, 0)}
        if settings.verify:
            totals[VERIFYING] = lambda: source.expected_size
        watch = (source.progressed,) if isinstance(source, Arriving) else ()
        self._progress = Progress(report, totals, *watch)

    async def run(self) -> Done:
        await self._ask()
        started = time.monotonic()
        try:
            if self._settings.discarded is None:
                await _phase(self._report, f"Erasing target device {self._target.name}", self._erase, self._in_thread)
            self._erased = True
            await _phase(self._report, "Retrieving scan information", lambda: None)
            await _phase(self._report, "Validating sizes", lambda: check_size(self._source, self._target))
            with showing(self._progress):
                await self._copy()
        except _FAILURES as error:
            if isinstance(error, Refused) and not self._erased:
                raise
            await self._fail(error)
        except asyncio.CancelledError:
            await self._fail(RestoreError("interrupted"))
        except Exception as error:
            try:
                failure = _first(error) if isinstance(error, ExceptionGroup) else error
            except Exception as bug:
                failure = bug
            if isinstance(failure, _FAILURES):
                await self._fail(failure)
            self._report.note(await self._leave_empty())  # whoever tells of a bug does not know the target
            raise failure from None
        how = "verified" if self._settings.verify else "not verified"
        if self._settings.delta:
            how += f", {format_size(self._written)} of it written, the rest was there already"
        verb = "Restored" if self._settings.discarded is None else "Saved"
        return _done(verb, self._source.least_size, time.monotonic() - started, how)

    async def _ask(self) -> None:
        if self._settings.confirm is None:
            return
        try:
            contents = str(await asyncio.to_thread(self._target.contents))
        except (NBDError, OSError) as error:
            contents = f"unreadable: {say(error)}"
        question = f"Erase contents of {self._target.name} ({format_size(self._target.size)}, {contents})?"
        if not await asyncio.to_thread(self._settings.confirm, question):
            raise Refused("not erased; nothing was touched")

    async def _copy(self) -> None:
        source = self._source
        known = await asyncio.to_thread(self._known_zeroes)
        sample = _Sample(source.name)
        body = known.apply(_fitting(cut(source.extents(), self._head), source, self._target))
        head = list(cut(source.extents(), 0, self._head))
        generation = self._target.generation
        async with Verification(source, self._target, self._verified, self._report.note) as asking:
            delta = self._delta(asking)
            if delta is not None and isinstance(source, Described):
                body = delta.unknown(body, source)
            if isinstance(source, Arriving):
                body = source.arrivals(body, self._stopping.is_set)
            check = asking if self._settings.verify else None
            different = await self._write(body, check, sample, delta)
            if check is not None and sample.items and not different:
                different = await check.compare_again(sample.items)
            await self._settle(different, check)
            self._progress.complete(RESTORING)
            while True:
                generation = await self._settle_again(generation, check)
                await asyncio.to_thread(self._source.check_unchanged)
                self._head_written = True
                await self._settle(await self._write(head, check), check)
                if check is None or generation == self._target.generation:
                    break
                await self._in_thread(self._zero_head)  # while the rest is in doubt
                self._head_written = False
        await asyncio.to_thread(self._source.check_unchanged)
        for phase in self._progress.totals:
            self._progress.complete(phase)

    def _known_zeroes(self) -> KnownZeroes:
        source = self._source
        if not source.sequential and all(not extent.zero for extent in source.extents()):
            return KnownZeroes([])
        return KnownZeroes(self._target.zeroes(0, source.size or self._target.size))

    async def _settle(self, different: list[Piece], check: Verification | None) -> None:
        """Send what differs again until nothing does: not that either over which what was sent again may have gone.

        Raises:
            Differences: something still does.
        """
        damaged: set[int] = set()
        for _ in range(ATTEMPTS):
            if not different:
                break
            damaged.update(piece.offset for piece in different)
            what = "1 range differs and is" if len(different) == 1 else f"{len(different)} ranges differ and are"
            self._report.note(f"{what} sent again")
            again = [Piece(p.offset, p.length, Kind.DATA if p.kind is Kind.DATA else Kind.ZERO) for p in different]
            different = await self._write(again, check)
            if check is not None and not different:
                start = 0 if self._head_written else self._head
                different = await check.compare_all(cut(self._source.extents(), start))
        if different:
            await asyncio.to_thread(self._source.check_unchanged)  # or it is not the target's fault
            still = await self._in_thread(lambda: self._still_matches(different))
            ranges = join([(piece.offset, piece.length) for piece in different])
            raise Differences(
                f"the medium is at fault: {self._target.name} keeps other data than were sent, {ATTEMPTS} times over"
                + still,
                ranges,
            )
        if damaged:
            one = len(damaged) == 1
            what = "1 range was damaged; it is" if one else f"{len(damaged)} ranges were damaged; they are"
            self._report.note(f"the transfer, or a bad write, was at fault: {what} right now")

    def _still_matches(self, pieces: list[Piece]) -> str:
        """Whether the source of pieces that differ on the target is right at this moment, as a clause.

        Raises:
            SourceError: it is not, so that it is not the target's fault alone.
        """
        source = self._source
        if not isinstance(source, Forgetful) or not source.checked:
            return ""
        for piece in pieces[: 1 if source.sequential else _LOOKED_AT]:  # each is decoded from the start
            if piece.kind is Kind.DATA:
                source.forget(piece.offset, piece.length)
                source.payload(piece.offset, piece.length)
        return f", while {source.name} still matches its scan"

    async def _settle_again(self, generation: int, check: Verification | None) -> int:
        """Compare all but the first MiB once more if what was found of it was found before `generation` had grown.

        Returns:
            The generation that it is right in.
        """
        while check is not None and generation != self._target.generation:
            generation = self._target.generation
            self._doubts.again()
            again = cut(self._source.extents(), self._head)
            await self._settle(await check.compare_all(again), check)
        return generation

    async def _write(
        self,
        pieces: Iterable[Piece],
        check: Verification | None,
        sample: _Sample | None = None,
        delta: Delta | None = None,
    ) -> list[Piece]:
        """Write pieces and flush; meanwhile compare those that are written. The pieces that differ."""
        if check is None:
            await self._write_all(self._items(pieces, sample, delta), lambda piece, payload: None, lambda piece: None)
            return []
        feed = Feed()
        hasher = Hasher(self._source.name, feed)

        async def write() -> None:
            await self._write_all(self._items(pieces, sample, delta), hasher.sending, hasher.written)
            hasher.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(write())
            comparing = group.create_task(check.compare(feed))
        return comparing.result()

    def _delta(self, asking: Verification) -> Delta | None:
        if not self._settings.delta:
            return None
        from restore.blocks.delta import Delta

        return Delta(self._source.name, asking, self._same)

    def _items(self, pieces: Iterable[Piece], sample: _Sample | None, delta: Delta | None) -> Iterator[Item]:
        """Pieces with their payloads, as fast as they may be sent."""

        def read() -> Iterator[Item]:
            for piece in pieces:
                if self._stopping.is_set():
                    return
                payload = payload_of(piece, self._source)
                if sample is not None:
                    sample.see(piece, payload)
                yield piece, payload

        items = read() if delta is None else delta.filter(read())
        return throttle(items, self._settings.max_rate, self._stopping.wait)

    async def _write_all(
        self, items: Iterator[Item], sending: Callable[[Piece, Payload | None], None], written: Callable[[Piece], None]
    ) -> None:
        pending: dict[int, Piece] = {}

        def operations() -> Iterator[Operation]:
            for piece, payload in items:
                if self._stopping.is_set():
                    return
                self._begun = True
                sending(piece, payload)
                asked = operation(piece, payload)
                if asked is None:
                    finish(piece)
                else:
                    pending[asked.offset] = piece
                    self._written += piece.length
                    yield asked

        def finish(piece: Piece) -> None:
            self._progress.add(RESTORING, piece.length)
            written(piece)

        def run() -> None:
            self._target.run(operations(), lambda asked: finish(pending.pop(asked.offset)))
            self._target.flush()

        await self._in_thread(run)

    def _verified(self, length: int) -> None:
        self._progress.add(VERIFYING, length)

    def _same(self, piece: Piece) -> None:
        """A piece need not be sent, and was compared by that."""
        self._progress.add(RESTORING, piece.length)
        self._progress.add(VERIFYING, piece.length)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """Run work on the target in a thread. When cancelled, have it end before anything else uses the target."""
        running = asyncio.create_task(asyncio.to_thread(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._stopping.set()
            ended, _ = await asyncio.wait([running], timeout=_PATIENCE)
            if not ended:
                self._target.abort()
                ended, _ = await asyncio.wait([running], timeout=_PATIENCE)
            for task in ended:
                task.exception()  # it does not matter any more
            raise

    async def _fail(self, error: BaseException) -> NoReturn:
        """Say what happened and what is on the target now."""
        emptying = asyncio.create_task(self._leave_empty())
        with suppress(asyncio.CancelledError):
            await asyncio.shield(emptying)
        state = await emptying
        if isinstance(error, Differences):
            raise Differences(f"{error}; {state}", error.ranges) from error
        if self._begun and state == self._empty and not isinstance(error, SourceError):
            state += " (the same command with --delta goes on from here)"
        what = f"{self._source.name}: {error}" if isinstance(error, PayloadError) else say(error)
        raise RestoreError(f"{what}; {state}") from error

    async def _leave_empty(self) -> str:
        """See to it that the target does not look like a disk; what it looks like, as a clause."""
        if self._settings.discarded is not None:
            return self._settings.discarded
        if self._head_written:
            try:
                await asyncio.to_thread(self._zero_head)
            except (NBDError, OSError) as error:
                return f"{self._target.name} could not be emptied ({say(error)}): do not use what is on it"
        elif not self._erased:
            return f"{self._target.name} may still hold what was on it"
        return self._empty

    def _erase(self) -> None:
        """Zero the first MiB. If the source's is zeroes then too, it is the target by another way: undo it.

        Raises:
            Refused: so it is, and all is as it was.
        """
        source = self._source
        if source.sequential or not isinstance(source, Forgetful):
            self._zero_head()
            return
        pieces = [piece for piece in cut(source.extents(), 0, self._head) if piece.kind is Kind.DATA]
        before = [self._bytes(piece) for piece in pieces]
        self._zero_head()
        source.forget(0, self._head)
        if all(map(_is_zero, before)) or not all(_is_zero(self._bytes(piece)) for piece in pieces):
            return
        writes = (
            Operation(Command.WRITE, piece.offset, piece.length, data=data)
            for piece, data in zip(pieces, before, strict=True)
        )
        self._target.run(writes, lambda operation: None)
        self._target.flush()
        raise Refused(
            f"{source.name} and {self._target.name} are the same disk by two ways; its first MiB, which was zeroed to "
            "find that out, is as it was"
        )

    def _bytes(self, piece: Piece) -> memoryview:
        return as_memory(self._source.payload(piece.offset, piece.length), piece.length, self._source.name)

    def _zero_head(self) -> None:
        self._target.run([Operation(Command.WRITE_ZEROES, 0, self._head)], lambda operation: None)
        self._target.flush()


def _is_zero(data: memoryview) -> bool:
    return bytes(data) == bytes(len(data))


def _fitting(pieces: Iterable[Piece], source: Source, target: Target) -> Iterator[Piece]:
    """The same pieces, as long as they have room on the target: a source may not know how large it is.

    Raises:
        SourceError: one has not.
    """
    for piece in pieces:
        if piece.offset + piece.length > target.size:
            raise SourceError(
                f"{target.name} is too small: it has {target.size} bytes ({format_size(target.size)}), "
                f"{source.name} has more"
            )
        yield piece


class _Sample:
    """A few pieces of data and what they have to be: the first of them and ever fewer behind it.

    A disk that is smaller than it says, such as a forged memory card, begins again at its start when it is full. Each
    piece that is compared soon after it was written is right then, and what is overwritten is what came first.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.items: list[Expected] = []

    def see(self, piece: Piece, payload: Payload | None) -> None:
        """A piece that is being sent; it may be kept in mind."""
        if payload is not None and (not self.items or piece.offset >= 2 * self.items[-1].piece.offset):
            self.items.append(expected(piece, payload, self._name))


class _Doubts:
    """Counts how often all has to be compared once more."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._times = 0

    def again(self) -> None:
        """Say that it has to be, now.

        Raises:
            RestoreError: it was so too often; there is no end to it where no connection lasts as long as that takes.
        """
        self._times += 1
        if self._times > RESTARTS:
            raise RestoreError(f"the connection was lost during each of {RESTARTS} more comparisons")
        self._report.note(_AGAIN)


async def _phase(
    report: Report,
    name: str,
    work: Callable[[], _T],
    in_thread: Callable[[Callable[[], _T]], Awaitable[_T]] = asyncio.to_thread,
) -> _T:
    report.begin(name)
    result = await in_thread(work)
    report.done()
    return result


def _done(verb: str, size: int, seconds: float, how: str) -> Done:
    rate = format_size(int(size / max(seconds, 0.001)))
    return Done(f"{verb} {format_size(size)} in {seconds:.1f} s ({rate}/s), {how}", size, seconds)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first of several failures; a bug among them goes before any of them."""
    errors = list(_leaves(group))
    for error in errors:
        if not isinstance(error, _FAILURES):
            raise error
    return errors[0]


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error

"""What a restore is tried on: disks that are served by ours, by others, and that are local.

Debian packages: libnbd-bin nbd-server nbdkit nbdkit-plugin-python qemu-utils util-linux.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.restore.engine import MIB, READ_BACK, Disk, nbd_server, nbdkit, qemu_nbd
from tests.serving import serving
from tests.support import loop_device

SIZE = 8 * MIB
OURS = ("builtin file", "builtin loop", "nbdkit file", "nbdkit loop")
FOREIGN = ("nbdkit's own file", "nbdkit memory", "qemu-nbd", "nbd-server")
LOCAL = ("local file", "local loop")


@pytest.fixture(scope="module")
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """A disk of `SIZE` bytes of the kind that the test is parametrised with."""
    kind: str = request.param
    directory = tmp_path_factory.mktemp("disk")
    image = directory / "disk.img"
    image.write_bytes(bytes(SIZE))
    no_api = f"the server has no control API; {READ_BACK}"
    with ExitStack() as stack:
        enter = stack.enter_context
        path: Path | None = image
        note = ""
        match kind.split():
            case ["local", what]:
                path = enter(loop_device(image)) if what == "loop" else image
                target = str(path)
            case ["builtin" | "nbdkit" as engine, "file" | "loop" as what]:
                path = enter(loop_device(image)) if what == "loop" else image
                options = ("--listen=127.0.0.1:0", "--control=127.0.0.1:0")
                target = enter(serving(path, options=options, engine=engine, errors=directory / "errors")).uri()
            case ["nbdkit's", "own", "file"]:
                target, note = enter(nbdkit("file", image, directory=directory)), no_api
            case ["nbdkit", "memory"]:
                target, note, path = enter(nbdkit("memory", str(SIZE), directory=directory)), no_api, None
            case ["qemu-nbd"]:
                target, note = enter(qemu_nbd(image, directory=directory)), no_api
            case _:
                target, note = enter(nbd_server(image, directory=directory)), no_api
        yield Disk(target, path, SIZE, note)

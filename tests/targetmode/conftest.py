"""What the tests of the serving side share.

Debian packages: fdisk iproute2 libnbd-bin mount nbdkit nbdkit-plugin-python python3-libnbd qemu-utils util-linux.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.serving import ENGINES, Serving, pattern, run, serving

MIB = 1 << 20

settings.register_profile(
    "targetmode",
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("targetmode")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root for loop devices, mounts and network namespaces")


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """1 MiB of bytes that are all different."""
    path = tmp_path / "disk.img"
    path.write_bytes(pattern(MIB))
    return path


@pytest.fixture
def parted(tmp_path: Path) -> Path:
    """8 MiB with a GPT and two partitions, `parted1` of 2 MiB from 1 MiB and `parted2` of 1 MiB from 4 MiB."""
    path = tmp_path / "parted"
    path.write_bytes(pattern(8 * MIB))
    part(path)
    return path


def part(path: Path) -> None:
    run("sfdisk", "--quiet", "--wipe=never", path, stdin="label: gpt\nstart=2048,size=4096\nstart=8192,size=2048\n")


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """Runs `targetmode serve` until the test ends; see `serving`."""
    with ExitStack() as stack:
        number = iter(range(100))

        def serve(*disks: str | Path, **options: Any) -> Serving:
            context: AbstractContextManager[Serving] = serving(
                *disks, errors=tmp_path / f"errors{next(number)}", **options
            )
            return stack.enter_context(context)

        yield serve

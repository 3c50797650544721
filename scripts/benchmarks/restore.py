"""Every kind of source, a scan, a clone, --delta, several targets: against the tools that do the same."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from scripts.benchmarks.measuring import Bench
from scripts.benchmarks.running import BIN, asr, free_port, our_server, timed, wait_for
from scripts.dmg import build_dmg

MIB = 1 << 20
TILE = 64 * MIB  # bytes after which the image repeats itself, further than any of the compressors looks back


def to(bench: Bench, source: Path | str, *options: str) -> Callable[[], float]:
    """A restore to the target, as a whole process, not verified: the peers do not verify either."""
    return lambda: timed(asr(source, str(bench.target), "--noverify", *options))


def shell(command: str) -> Callable[[], float]:
    """A pipeline of the peer's."""
    return lambda: timed(["bash", "-o", "pipefail", "-c", command])


@cache
def half_compressible(bench: Bench) -> Path:
    """An image that is half text and half noise."""
    generator = random.Random(1)
    words = [generator.randbytes(generator.randint(2, 9)).hex().encode() for _ in range(4096)]
    tile = bytearray()
    while len(tile) < TILE:
        tile += generator.randbytes(MIB // 2)
        tile += b" ".join(generator.choices(words, k=MIB // 16))[: MIB // 2]
    path = bench.directory / "half.img"
    with path.open("wb") as file:
        for at in range(0, bench.size, TILE):
            file.write(tile[: min(TILE, bench.size - at)])
    return path


def dmg(bench: Bench) -> None:
    """UDIF images."""
    for codec in ("zlib", "lzma"):
        image = bench.directory / f"{codec}.dmg"
        build_dmg(half_compressible(bench), image, codec)
        seven, out = shutil.which("7zz") or "7z", bench.target
        bench.compare(
            f"{codec} dmg", "7z x", 1.5, to(bench, image), shell(f"{seven} x -so -tdmg {image} > {out} 2>/dev/null")
        )
        if codec == "zlib":  # qemu has no LZMA runs
            bench.compare(
                f"{codec} dmg", "qemu-img convert", 1.5, to(bench, image),
                shell(f"qemu-img convert -n -f dmg -O raw {image} {out}"),
            )  # fmt: skip
        image.unlink()


def zstd(bench: Bench) -> None:
    """Compressed raw images: one frame, which is for one core, and many, as `asr capture` makes them."""
    image = bench.directory / "one.img.zst"
    subprocess.run(["zstd", "-q", "-T0", half_compressible(bench), "-o", image], check=True)
    peer = f"zstd -dcq {{}} | dd of={bench.target} bs=1M conv=notrunc status=none"
    bench.compare("zstd raw, one frame", "zstd -dc | dd", 1.0, to(bench, image), shell(peer.format(image)))
    image.unlink()
    image = bench.directory / "many.img.zst"
    subprocess.run(capture(half_compressible(bench), image, "zstd"), check=True, stdout=subprocess.DEVNULL)
    Path(f"{image}.bmap").unlink()
    bench.compare("zstd raw, frames of 1 MiB", "zstd -dc | dd", 1.5, to(bench, image), shell(peer.format(image)))
    image.unlink()


def capture(source: Path, target: Path, compress: str) -> list[Any]:
    """The command line of a capture."""
    return [BIN / "asr", "capture", "--source", source, "--target", target, "--compress", compress, "--overwrite"]


@contextmanager
def nginx(root: Path) -> Iterator[str]:
    """Debian's nginx; the URL of what is in a directory."""
    port, config = free_port(), root / "nginx.conf"
    paths = "".join(f"{kind}_temp_path {root}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    config.write_text(
        f"daemon off; pid {root}/nginx.pid; error_log {root}/nginx.log; {'user root;' if os.geteuid() == 0 else ''}"
        f"events {{}} http {{ {paths} access_log off; sendfile on; tcp_nopush on;"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}"
    )
    with subprocess.Popen(
        [shutil.which("nginx") or "/usr/sbin/nginx", "-c", config, "-e", root / "nginx.log"]
    ) as server:
        try:
            wait_for(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def http(bench: Bench) -> None:
    """A raw image behind a web server."""
    with nginx(bench.directory) as base:
        url = f"{base}/{bench.source.name}"
        kit = shutil.which("nbdkit") or "/usr/sbin/nbdkit"
        bench.compare(
            "HTTP", "curl | dd", 1.0, to(bench, url),
            shell(f"curl -sf {url} | dd of={bench.target} bs=1M iflag=fullblock conv=notrunc status=none"),
        )  # fmt: skip
        bench.compare(
            "HTTP", "nbdcopy from nbdkit curl", 1.0, to(bench, url),
            lambda: timed(["nbdcopy", "--", "[", kit, "--exit-with-parent", "curl", url, "]", bench.target]),
        )  # fmt: skip


@contextmanager
def loops(*images: Path) -> Iterator[Sequence[str]]:
    """Loop devices over images; needs root."""
    with ExitStack() as stack:
        devices = []
        for image in images:
            made = subprocess.run(["losetup", "--find", "--show", image], check=True, capture_output=True, text=True)
            devices.append(made.stdout.strip())
            stack.callback(subprocess.run, ["losetup", "--detach", devices[-1]], check=True)
        yield devices


@contextmanager
def volume(bench: Bench) -> Iterator[tuple[str, str]]:
    """An ext4 half full on a loop device, and one to copy it to."""
    tree, image, other = (bench.directory / name for name in ("tree", "volume.img", "other.img"))
    tree.mkdir()
    for number in range(bench.size // MIB // 32):
        (tree / f"file{number}").write_bytes(random.Random(number).randbytes(16 * MIB))
    for path in (image, other):
        with path.open("wb") as file:
            file.truncate(bench.size)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-d", tree, image], check=True)
    shutil.rmtree(tree)
    try:
        with loops(image, other) as (first, second):
            yield first, second
    finally:
        image.unlink()
        other.unlink()


def clone(bench: Bench) -> None:
    """Used blocks of a volume, from device to device and by way of an image."""
    with volume(bench) as (source, target):
        quiet = "--logfile=/dev/null"
        restore = [BIN / "asr", "restore", "--target", target, "--erase", "--noprompt", "--noverify"]
        bench.compare(
            "device clone, used blocks only", "partclone.ext4 -b", 1.0, lambda: timed([*restore, "--source", source]),
            lambda: timed(["partclone.ext4", "-b", "-q", quiet, "-s", source, "-O", target]),
        )  # fmt: skip
        image = bench.directory / "partclone.img"
        subprocess.run(["partclone.ext4", "-c", "-q", quiet, "-s", source, "-o", image], check=True)
        bench.compare(
            "partclone image", "partclone.restore", 1.0, lambda: timed([*restore, "--source", image]),
            lambda: timed(["partclone.restore", "-q", quiet, "-s", image, "-O", target]),
        )  # fmt: skip
        subprocess.run(["zstd", "-q", "--rm", image], check=True)
        bench.compare(
            "partclone image, zstd", "zstd -dc | partclone.restore", 1.0,
            lambda: timed([*restore, "--source", f"{image}.zst"]),
            shell(f"zstd -dcq {image}.zst | partclone.restore -q {quiet} -s - -O {target}"),
        )  # fmt: skip
        Path(f"{image}.zst").unlink()


def scan(bench: Bench) -> None:
    """A scan of a raw image; bmaptool makes SHA-256 alone."""
    image = bench.source
    bench.compare(
        "imagescan", "bmaptool create", 1.5, lambda: timed([BIN / "asr", "imagescan", image]),
        lambda: timed(["bmaptool", "-q", "create", image, "-o", bench.directory / "peer.bmap"]),
    )  # fmt: skip
    Path(f"{image}.bmap").unlink()


def delta(bench: Bench) -> None:
    """A disk that is 99 % the same already."""

    def prepare() -> None:
        shutil.copyfile(bench.source, bench.target)
        with bench.target.open("r+b") as file:
            for at in range(0, bench.size, 100 * MIB):
                file.seek(at + MIB)
                file.write(bytes(MIB))

    def run(*words: str) -> float:
        prepare()
        with our_server(bench.target) as uri:
            return timed([*asr(bench.source, uri), *words])

    def hashing() -> float:
        shutil.copyfile(bench.source, bench.target)
        with our_server(bench.target) as uri:
            return timed([BIN / "asr", "verify", "--source", bench.source, "--target", uri])

    bench.compare("--delta, 99 % there already", "the full copy", 1.0, lambda: run("--delta"), run)
    bench.compare("--delta, 99 % there already", "hashing alone", 1.3, lambda: run("--delta"), hashing, at_least=False)


def fan_out(bench: Bench) -> None:
    """One source for four exports."""
    targets = [bench.directory / f"target{number}.img" for number in range(4)]
    size = bench.size // 4
    part = bench.directory / "part.img"
    image = bench.directory / "part.img.zst"
    with half_compressible(bench).open("rb") as file:
        part.write_bytes(file.read(size))
    subprocess.run(["zstd", "-q", "-T0", part, "-o", image], check=True)
    for target in targets:
        target.write_bytes(bytes(size))
    with ExitStack() as stack:
        uris = [stack.enter_context(our_server(target)) for target in targets]
        for source in (part, image):

            def at_once(source: Path = source) -> float:
                first, *others = uris
                return timed([*asr(source, first), *(word for uri in others for word in ("--target", uri))])

            def in_a_row(source: Path = source) -> float:
                return sum(timed(asr(source, uri)) for uri in uris)

            what = "raw" if source is part else "zstd"
            bench.compare(f"four exports at once, {what}", "four runs in a row", 1.0, at_once, in_a_row)
    for path in (*targets, part, image):
        path.unlink()


ROWS: dict[str, Callable[[Bench], None]] = {
    "dmg": dmg,
    "zstd": zstd,
    "http": http,
    "clone": clone,
    "scan": scan,
    "delta": delta,
    "fan-out": fan_out,
}

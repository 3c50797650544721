"""A room of machines: network namespaces joined by a bridge in one more, the first of them the server's.

Debian packages: iproute2 nftables ethtool.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from subprocess import run as run_to_its_end

SERVER = "10.78.0.1"
ASR = (sys.executable, "-m", "restore.cli")


def run(*words: str, check: bool = True) -> str:
    """Run a program to its end, by default one that has to succeed; what it printed.

    Not that of the other tests: `scripts/bench` has rooms too, and nothing that tests need.
    """
    done = run_to_its_end(words, capture_output=True, text=True, timeout=60, check=False)
    assert not check or done.returncode == 0, f"{words}: status {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Machine:
    """One of them.

    Attributes:
        name: of its namespace.
        address: its IPv4 address.
    """

    name: str
    address: str

    @property
    def inside(self) -> tuple[str, ...]:
        """What runs a program there."""
        return ("ip", "netns", "exec", self.name)

    def run(self, *words: str) -> str:
        """Run a program there to its end."""
        return run(*self.inside, *words)

    def lose(self, percent: int, what: str = "udp") -> None:
        """Have so many of a hundred datagrams, which arrive as batches, not get through."""
        self.run("nft", "add table inet loss")
        self.run("nft", "add chain inet loss in { type filter hook input priority 0; }")
        often = "" if percent >= 100 else f"numgen random mod 100 < {percent} "
        self.run("nft", f"add rule inet loss in meta l4proto {what} {often}drop")

    def lose_nothing(self) -> None:
        """As it was."""
        self.run("nft", "delete table inet loss")

    def single_datagrams(self) -> None:
        """Have a batch that is sent here cross the network datagram by datagram, to be lost one by one."""
        self.run("ethtool", "-K", "eth0", "tx-udp-segmentation", "off")


@dataclass(slots=True)
class Room:
    """All of them.

    Attributes:
        server: where the image is.
        clients: where it goes.
    """

    server: Machine
    clients: list[Machine]
    _processes: list[Popen[str]] = field(default_factory=list)

    def start(self, machine: Machine, *words: str | Path, output: int | None = PIPE) -> Popen[str]:
        """Run `asr` on one of them; it is ended with the room."""
        command = [*machine.inside, *ASR, *(str(word) for word in words)]
        process = Popen(command, stdout=output, stderr=output, text=True, cwd=Path(__file__).parents[3])
        self._processes.append(process)
        return process


@contextmanager
def room(clients: int) -> Iterator[Room]:
    """A server and so many clients, for as long as the context lasts."""
    unique = f"mc{os.getpid()}-{time.monotonic_ns() % 10**6}"
    hub = f"{unique}-hub"
    machines = [Machine(f"{unique}-{number}", f"10.78.0.{number + 1}") for number in range(clients + 1)]
    here = Room(machines[0], machines[1:])
    try:
        run("ip", "netns", "add", hub)
        run("ip", "-n", hub, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        run("ip", "-n", hub, "link", "set", "br0", "up")
        for number, machine in enumerate(machines):
            run("ip", "netns", "add", machine.name)
            run("ip", "-n", machine.name, "link", "set", "lo", "up")
            port = f"port{number}"
            run("ip", "-n", machine.name, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", hub)
            run("ip", "-n", machine.name, "address", "add", f"{machine.address}/24", "brd", "+", "dev", "eth0")
            run("ip", "-n", hub, "link", "set", port, "master", "br0", "up")
            run("ip", "-n", machine.name, "link", "set", "eth0", "up")
        yield here
    finally:
        for process in here._processes:
            process.kill()
            process.communicate()
        for name in (hub, *(machine.name for machine in machines)):
            for pid in run("ip", "netns", "pids", name, check=False).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)  # it would keep the namespace
            run("ip", "netns", "delete", name, check=False)

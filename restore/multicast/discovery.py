"""Servers are found by DNS-SD (RFC 6763), as asr's are: `_asr._tcp`, with what is streamed in the TXT record."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from zeroconf import Error, IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from restore.multicast.session import Session
from restore.multicast.sockets import Interface

SERVICE: Final = "_asr._tcp.local."
LOOK_FOR: Final = 2.0  # seconds in which a server in this network has answered
_ASK: Final = 1000  # milliseconds for the details of one
_LABEL: Final = 63  # bytes of a DNS label


@dataclass(frozen=True, slots=True, order=True)
class Found:
    """A server that was found.

    Attributes:
        host: its name, as it says.
        address: its IPv4 address.
        port: of its control API.
        image: name of the image.
        size: of that, in bytes; None where it does not say.
    """

    host: str
    address: str
    port: int
    image: str
    size: int | None

    @property
    def place(self) -> str:
        """What `--source` takes."""
        return f"asr://{self.address}:{self.port}"


@asynccontextmanager
async def announced(
    session: Session, interface: Interface, port: int, notify: Callable[[str], None]
) -> AsyncIterator[None]:
    """Have a server be found for as long as the context lasts; where that cannot be, `notify` is told."""
    host = socket.gethostname()
    name = f"{session.image} on {host} {session.id:016x}".encode()[-_LABEL:].decode(errors="ignore").replace(".", "-")
    info = AsyncServiceInfo(
        SERVICE,
        f"{name}.{SERVICE}",
        addresses=[socket.inet_aton(interface.address)],
        port=port,
        properties={
            "txtvers": "1",
            "host": host,
            "image": session.image,
            "size": str(session.size),
            "manifest": session.manifest,
            "group": session.group,
            "port": str(session.port),
        },
    )
    try:
        zeroconf = AsyncZeroconf(interfaces=[interface.address], ip_version=IPVersion.V4Only)
    except OSError as error:
        notify(f"it is not announced by DNS-SD: {error.strerror}")
        yield
        return
    try:
        try:
            await zeroconf.async_register_service(info)
        except (Error, OSError) as error:
            notify(f"it is not announced by DNS-SD: {error}")
        yield
    finally:
        await zeroconf.async_unregister_all_services()
        await zeroconf.async_close()


async def discover(interfaces: list[str], seconds: float = LOOK_FOR) -> list[Found]:
    """Look for servers.

    Args:
        interfaces: addresses of those to look by.
        seconds: how long.

    Raises:
        OSError: that is not possible here.
    """
    names: set[str] = set()

    def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        if state_change is ServiceStateChange.Removed:
            names.discard(name)
        else:
            names.add(name)

    zeroconf = AsyncZeroconf(interfaces=interfaces, ip_version=IPVersion.V4Only)
    try:
        browser = AsyncServiceBrowser(zeroconf.zeroconf, SERVICE, handlers=[changed])
        await asyncio.sleep(seconds)
        infos = [AsyncServiceInfo(SERVICE, name) for name in sorted(names)]
        await asyncio.gather(*(info.async_request(zeroconf.zeroconf, _ASK) for info in infos))
        await browser.async_cancel()
    finally:
        await zeroconf.async_close()
    return sorted(found for info in infos if (found := _read(info)) is not None)


def _read(info: AsyncServiceInfo) -> Found | None:
    """What a server says of itself; None if it says too little."""
    addresses = info.parsed_addresses(IPVersion.V4Only)
    said = {
        key.decode(errors="replace"): (value or b"").decode(errors="replace") for key, value in info.properties.items()
    }
    if not addresses or not info.port or not said.get("image"):
        return None
    size = said.get("size", "")
    return Found(
        said.get("host") or addresses[0],
        addresses[0],
        info.port,
        said["image"],
        int(size) if size.isascii() and size.isdigit() and len(size) < 20 else None,
    )

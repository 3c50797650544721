"""A multicast stream, opened as the options say."""

from __future__ import annotations

import argparse
import socket
import tempfile
from pathlib import Path

from restore.errors import Refused
from restore.manifest import ManifestError, signature
from restore.manifest.bmap import Bmap
from restore.manifest.parsing import parse
from restore.multicast.client.intake import Intake, IntakeSettings
from restore.multicast.client.server import SCHEME, Address, Server, ServerGone
from restore.multicast.client.source import MulticastSource
from restore.multicast.layout import Layout, is_streamable
from restore.multicast.session import Session
from restore.multicast.sockets import Interface, find_interface, interface_of
from restore.report import Report
from restore.source import Image


def open_stream(place: str, options: argparse.Namespace, report: Report) -> Image:
    """Find out what a server streams, and get ready to take part.

    Raises:
        Refused: it may not be used, or is not what the options insist on.
        ServerGone: there is no server.
    """
    address = Address.parse(place)
    server = Server(address, options.timeout)
    try:
        session = server.session()
        if address.image and address.image != session.image:
            raise Refused(
                f"{place}: the server streams {session.image}, not {address.image}: say {_place(address, session)}"
            )
        bmap = _manifest(server, session, options.verify_signature, report)
        layout = Layout(bmap)
        if (len(layout), bmap.image_size) != (session.chunks, session.size):
            raise ServerGone(f"{server.base}: its manifest is not of the image that its session says")
        targets = [options.target] if isinstance(options.target, str) else list(options.target)
        settings = IntakeSettings(
            socket.gethostname(),
            targets,
            timeout=options.stream_timeout,
            multicast_only=options.multicast_only,
            notify=report.note,
            missed=report.missed,
        )
        intake = Intake(server, session, layout, _interface(options.interface, server, session), settings)
        name = _place(address, session)
        source = MulticastSource(name, bmap, server, intake, session, keep_unmapped=options.keep_unmapped)
    except BaseException:
        server.close()
        raise
    return Image(source, "multicast")


def _place(address: Address, session: Session) -> str:
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{SCHEME}{host}/{session.image}"


def _manifest(server: Server, session: Session, allowed_signers: str | None, report: Report) -> Bmap:
    data = server.manifest(session)
    with tempfile.TemporaryDirectory(prefix="asr-") as directory:
        path = Path(directory) / "image.bmap"
        path.write_bytes(data)
        try:
            if allowed_signers is not None:
                signed = server.signature()
                if signed is None:
                    raise ManifestError(f"{path} is not signed; scan it there: asr imagescan --sign KEY")
                signature.signature_path(path).write_bytes(signed)
                signer = signature.verify(path, allowed_signers)
                report.note(f"The manifest of {session.image} is signed by {signer}")
            with path.open("rb") as file:
                bmap = parse(file, str(path))
        except ManifestError as error:
            raise ManifestError(str(error).replace(str(path), f"the manifest of {session.image}")) from None
    if not is_streamable(bmap):
        raise ServerGone(f"{server.base}: its manifest has ranges that cannot be checked")
    return bmap


def _interface(wanted: str | None, server: Server, session: Session) -> Interface:
    """Where the stream arrives: the interface that was told, or else the one that the server is reached by."""
    if wanted is None and (local := server.local_address()) is not None:
        found = interface_of(local)
        if found is not None:
            return found
    return find_interface(wanted, session.group)

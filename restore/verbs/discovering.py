"""`asr discover`, and a source that is `asr:` without a host: which multicast servers there are."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from restore.errors import Refused
from restore.multicast.discovery import LOOK_FOR, Found, discover
from restore.multicast.sockets import find_interface, interfaces
from restore.report import Report, answer
from restore.report.shown import shown
from targetmode.disks.text import format_size


async def tell_found(options: argparse.Namespace, report: Report) -> int:
    """List the servers.

    Returns:
        The exit status.

    Raises:
        Refused: there is none.
    """
    found = await _find(options.interface, options.seconds)
    if options.json:
        return answer("".join(json.dumps({**asdict(each), "source": each.place}) + "\n" for each in found), "asr")
    if not found:
        raise Refused(_nobody(options.seconds))
    return answer("".join(f"{_line(each)}\n" for each in found), "asr")


async def the_one(options: argparse.Namespace, report: Report) -> str:
    """The only server there is, as a source.

    Raises:
        Refused: there is none, or more than one, which are named.
    """
    found = await _find(options.interface, LOOK_FOR)
    if not found:
        raise Refused(_nobody(LOOK_FOR))
    if len(found) > 1:
        raise Refused(f"there are {len(found)} multicast servers, so name one: {'; '.join(map(_line, found))}")
    report.note(_line(found[0]))
    return found[0].place


async def _find(interface: str | None, seconds: float) -> list[Found]:
    there = [find_interface(interface, "224.0.0.251")] if interface is not None else list(interfaces())
    if not there:
        raise Refused("there is no network interface with an IPv4 address that is up")
    return await discover([each.address for each in there], seconds)


def _line(found: Found) -> str:
    size = "" if found.size is None else f", {format_size(found.size)}"
    return shown(f"{found.place}  {found.image}{size}, on {found.host}")


def _nobody(seconds: float) -> str:
    return (
        f"no multicast server has answered within {seconds:g} seconds; where DNS-SD does not reach, name it: "
        "--source asr://HOST"
    )

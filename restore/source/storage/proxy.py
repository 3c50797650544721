"""Proxies for web servers, as curl takes them from the environment: `http_proxy` and the like, `no_proxy`."""

from __future__ import annotations

import urllib.request
from base64 import b64encode
from typing import Final

from restore.errors import Refused
from restore.source.storage.address import Address, scheme_of

KINDS: Final = ("http", "https")


def proxy_for(address: Address) -> Address | None:
    """The proxy to take for an address, None to go there directly.

    Raises:
        Refused: it is of a kind that is not spoken.
    """
    proxies = urllib.request.getproxies_environment()
    url = proxies.get(address.scheme) or proxies.get("all")
    if not url or urllib.request.proxy_bypass_environment(address.netloc, proxies):  # type: ignore[attr-defined]
        return None
    proxy = Address.parse(url if scheme_of(url) else f"http://{url}")
    if proxy.scheme != "http":
        raise Refused(f"{address.scheme}_proxy names a {proxy.scheme}:// proxy; only http:// is spoken to one")
    return proxy


def authorization(proxy: Address) -> dict[str, str]:
    """The field that logs in at a proxy."""
    if proxy.user is None:
        return {}
    return {"Proxy-Authorization": basic(proxy.user, proxy.password or "")}


def basic(user: str, password: str) -> str:
    """User name and password as RFC 7617 has them."""
    return f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"

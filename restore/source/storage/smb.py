"""`smb://[[DOMAIN;]USER@]HOST/SHARE/PATH` by smbprotocol: SMB 2 and 3, signed, encrypted where the server wants that.

Its `smbclient` is used as it is, with connections of our own: fsspec shares one among all.
"""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import smbclient
import smbprotocol.exceptions as errors
from smbprotocol.header import NtStatus

from restore.errors import Refused
from restore.source.storage.address import Address, Credentials
from restore.source.storage.remote import Forbidden, Gone

_CONNECT: Final = 20  # seconds
_LOGIN: Final = "put user name and password into ~/.netrc, or into a file that SMB_CREDENTIALS names"
_DENIED: Final = "the server does not let it be read; check its permissions there"

logging.getLogger("smbprotocol").addHandler(logging.NullHandler())  # what it logs it raises as well


class SMB:
    """How to get at files of a share: `Door`."""

    piece = 4 << 20
    lost: tuple[type[BaseException], ...] = (OSError, ValueError, errors.SMBException)

    def connect(self, address: Address, timeout: float) -> _File:
        """Log in and open the file."""
        share, _, path = unquote(address.path).strip("/").partition("/")
        if not share or not path:
            raise Refused(f"{address}: this URL names no file in a share; it has to be smb://HOST/SHARE/PATH")
        name = "\\".join(("", "", address.host, share, *path.split("/")))
        credentials = _credentials(address)
        cache: dict[str, Any] = {}
        connected = False
        options: dict[str, Any] = {"port": address.port, "connection_cache": cache}
        try:
            smbclient.register_session(
                address.host,
                username=credentials.user if credentials else None,
                password=credentials.password if credentials else None,
                connection_timeout=min(int(timeout) or 1, _CONNECT),
                **options,
            )
            opened = _File(name, options)
            connected = True
            return opened
        except errors.AccessDenied:
            raise Forbidden(_DENIED) from None
        except (errors.LogonFailure, errors.SMBAuthenticationError):
            if credentials is None:
                raise Forbidden(f"the server wants a user name and password; {_LOGIN}") from None
            raise Forbidden("the server does not accept the user name and password") from None
        except errors.SMBOSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR) or error.ntstatus == NtStatus.STATUS_BAD_NETWORK_NAME:
                raise Gone from None
            if error.ntstatus == NtStatus.STATUS_SHARING_VIOLATION:
                raise Forbidden("it is being written by another program; stop that first") from None
            if error.ntstatus == NtStatus.STATUS_ACCESS_DENIED:
                raise Forbidden(_DENIED) from None
            raise
        finally:
            if not connected:
                _end(cache)

    def close(self) -> None:
        """Nothing is shared."""


class _File:
    """An open file: `Connection`."""

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        self._name, self._options = name, options
        self.version = self.look()
        self.size = int(str(self.version[0]))
        self._file: Any = smbclient.open_file(name, "rb", buffering=0, share_access="rd", **options)

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        data = bytearray(min(length, self.size - offset))
        count = self._file.readinto(data)
        return bytes(data) if count == len(data) else bytes(data[:count])

    def look(self) -> tuple[object, ...]:
        found = smbclient.stat(self._name, **self._options)
        return found.st_size, found.st_mtime_ns, found.st_ino

    def cut(self) -> None:
        for connection in [*self._options["connection_cache"].values()]:
            connection.transport.close()

    def close(self) -> None:
        try:
            self._file.close()
        except Exception:
            self._file.fd._connected = False  # its connection is lost: nothing is left to be closed on the other side
        finally:
            _end(self._options["connection_cache"])


def _end(cache: dict[str, Any]) -> None:
    smbclient.reset_connection_cache(fail_on_error=False, connection_cache=cache)


def _credentials(address: Address) -> Credentials | None:
    """From the URL, a file as mount.cifs reads it that SMB_CREDENTIALS names, or `~/.netrc`."""
    found = None
    path = os.environ.get("SMB_CREDENTIALS")
    if path and address.password is None:
        try:
            lines = Path(path).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise Refused(f"{path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
        values = dict(line.strip().split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
        user = values.get("username") or values.get("user")
        if user and address.user in (None, user):
            domain = values.get("domain") or values.get("dom")
            found = Credentials(f"{domain}\\{user}" if domain else user, values.get("password", ""))
    found = found or address.credentials()
    if found is not None and ";" in found.user:
        found = Credentials(found.user.replace(";", "\\", 1), found.password)
    return found

"""`sftp://[USER@]HOST/PATH` by paramiko: keys, agent, `known_hosts` and `config` as ssh has them.

Not by fsspec, which trusts every host key that it does not know, and asks for one small block at a time. Nor by
paramiko's own reading ahead, whose threads end in a traceback with the connection: several connections do that.
"""

from __future__ import annotations

import getpass
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import paramiko

from restore.errors import Refused
from restore.source.storage.address import Address
from restore.source.storage.remote import Forbidden, Gone

_KNOWN: Final = (Path("/etc/ssh/ssh_known_hosts"),)
_CONNECT: Final = 20.0  # seconds
_REQUEST: Final = 255 << 10  # bytes; OpenSSH answers no larger ones

logging.getLogger("paramiko").addHandler(logging.NullHandler())  # what it logs it raises as well


class SFTP:
    """How to get at files of an ssh server: `Door`."""

    piece = 2 << 20
    lost = (OSError, EOFError, paramiko.SSHException)

    def connect(self, address: Address, timeout: float) -> _File:
        """Log in and open the file."""
        settings = _configured(address.host)
        host = str(settings.get("hostname", address.host))
        port = address.port if address.port != 22 else int(str(settings.get("port", 22)))
        credentials = address.credentials()
        user = credentials.user if credentials else str(settings.get("user", "")) or getpass.getuser()
        if "proxyjump" in settings or "proxycommand" in settings:
            raise Refused(f"{address}: ~/.ssh/config wants a jump host, which is not done here; mount it by sshfs")
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_Unknown())
        known = [*_KNOWN, *(Path(name).expanduser() for name in _listed(settings, "userknownhostsfile"))]
        for path in known:
            with suppress(FileNotFoundError):
                client.load_system_host_keys(str(path))
        client.load_system_host_keys()
        connected = False
        limit = min(timeout, _CONNECT)
        keys = [str(Path(name).expanduser()) for name in _listed(settings, "identityfile")]
        where = f"[{host}]:{port}" if port != 22 else host
        try:
            client.connect(
                host,
                port,
                username=user,
                password=(credentials.password if credentials else None) or None,
                key_filename=[key for key in keys if Path(key).exists()] or None,  # type: ignore[arg-type]
                timeout=limit,
                banner_timeout=limit,
                auth_timeout=limit,
                channel_timeout=limit,
            )
            opened = _File(client, unquote(address.path), timeout)
            connected = True
            return opened
        except _UnknownHost as error:
            raise Refused(
                f"{address}: the host key of {where} is not known ({error}); compare it, and put it into "
                f"~/.ssh/known_hosts: ssh-keyscan {f'-p {port} ' if port != 22 else ''}{host}"
            ) from None
        except paramiko.BadHostKeyException:
            raise Refused(
                f"{address}: the host key of {where} is not the one in known_hosts; if it was replaced: "
                f"ssh-keygen -R '{where}'"
            ) from None
        except paramiko.SSHException as error:
            if not isinstance(error, paramiko.AuthenticationException) and "No auth" not in str(error):
                raise
            raise Forbidden(
                f"the server does not let {user!r} in; put a key into ssh-agent or ~/.ssh, or a password into ~/.netrc"
            ) from None
        except FileNotFoundError:
            raise Gone from None
        except PermissionError:
            raise Forbidden(f"the server does not let {user!r} read it; check its permissions there") from None
        finally:
            if not connected:
                client.close()

    def close(self) -> None:
        """Nothing is shared."""


class _File:
    """An open file: `Connection`."""

    def __init__(self, client: paramiko.SSHClient, path: str, timeout: float) -> None:
        self._client, self._path = client, path
        self._sftp = client.open_sftp()
        channel = self._sftp.get_channel()
        if channel is not None:
            channel.settimeout(timeout)
        self.version = self.look()
        self._file = self._sftp.open(path, "rb", bufsize=0)
        self._file.MAX_REQUEST_SIZE = _REQUEST
        self.size = int(str(self.version[0]))

    def read(self, offset: int, length: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(min(length, self.size - offset))

    def look(self) -> tuple[object, ...]:
        found = self._sftp.stat(self._path)
        return found.st_size or 0, found.st_mtime

    def cut(self) -> None:
        transport = self._client.get_transport()
        if transport is not None:
            transport.close()

    def close(self) -> None:
        self._client.close()


class _UnknownHost(paramiko.SSHException):
    """A host key that nobody has vouched for; `str()` is its fingerprint."""


class _Unknown(paramiko.MissingHostKeyPolicy):
    """No host key is trusted only because it is the first."""

    def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
        raise _UnknownHost(f"{key.get_name()} {key.fingerprint}")


def _configured(host: str) -> dict[str, object]:
    """What `~/.ssh/config` has for a host."""
    path = Path("~/.ssh/config").expanduser()
    try:
        return dict(paramiko.SSHConfig.from_path(str(path)).lookup(host)) if os.access(path, os.R_OK) else {}
    except (OSError, paramiko.ConfigParseError) as error:
        raise Refused(f"{path}: {error}") from None


def _listed(settings: dict[str, object], name: str) -> list[str]:
    value = settings.get(name, [])
    return [str(word) for word in value] if isinstance(value, list) else str(value).split()

"""SSH signatures of a scan, `IMAGE.bmap.sshsig`, made and checked by OpenSSH's ssh-keygen, in the namespace `bmap`.

Format: PROTOCOL.sshsig of OpenSSH. Verification is its own two steps: whose key may this be (`find-principals`), and is
it that one's signature of these bytes (`verify`).
"""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import IO, Final

from restore.errors import Refused, RestoreError
from restore.manifest import ManifestError
from restore.replacing import replacing
from targetmode.disks.text import printable

NAMESPACE: Final = "bmap"
_SIGNATURE_LIMIT: Final = 1 << 20  # bytes
_LINE_LIMIT: Final = 1 << 10  # bytes
_PRIVATE: Final = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*\Z"
)  # in an older format `-l` may need its passphrase
_PATIENCE: Final = 60.0  # seconds, to verify


def signature_path(bmap: str | Path) -> Path:
    """Where the signature of a scan is: not where ssh-keygen puts it, where bmaptool expects one of PGP."""
    return Path(f"{bmap}.sshsig")


def drop(bmap: str | Path) -> None:
    """Remove the signature of a scan that is about to be replaced.

    Raises:
        OSError: there is one, and it cannot be removed.
    """
    signature_path(bmap).unlink(missing_ok=True)


def check_key(key: str) -> None:
    """See that a scan can be signed with a key, as far as that can be told before there is one; nobody is asked for it.

    Args:
        key: as `sign` takes it.

    Raises:
        Refused: it is not there, cannot be read, or is no key.
        RestoreError: there is no ssh-keygen.
    """
    try:
        with open(key, "rb") as file:
            first = file.readline(_LINE_LIMIT)
    except OSError as error:
        raise Refused(f"{key}, the key to sign with: {error.strerror}") from None
    if _run(["ssh-keygen", "-l", "-f", _as_path(key)], None).returncode and not _PRIVATE.match(first):
        raise Refused(f"{key} is no SSH key to sign with; ssh-keygen -t ed25519 -f FILE makes one")


def sign(bmap: str | Path, key: str) -> None:
    """Sign a scan; ssh-keygen asks for the key's passphrase on the terminal if it has one, or the agent signs.

    Args:
        bmap: path of the scan.
        key: path of a private key, or of a public one whose private one the agent has.

    Raises:
        RestoreError: it was not signed.
        OSError: the signature cannot be written.
    """
    with open(bmap, "rb") as data:
        command = ["ssh-keygen", "-q", "-Y", "sign", "-n", NAMESPACE, "-f", _as_path(key)]
        done = _run(command, data, timeout=None)
    if done.returncode or not done.stdout.startswith(b"-----BEGIN SSH SIGNATURE-----"):
        raise RestoreError(f"{bmap} could not be signed with {key}: {_reason(done)}")
    with replacing(signature_path(bmap)) as file:
        file.write(done.stdout)


def verify(bmap: str | Path, allowed_signers: str, data: IO[bytes] | None = None) -> str:
    """Check the signature of a scan.

    Args:
        bmap: path of the scan.
        allowed_signers: path of a file of who may sign it (ssh-keygen(1), "ALLOWED SIGNERS").
        data: what is to be what was signed, an open file at its start; None is the scan as it is now.

    Returns:
        Who signed it, as that file names them.

    Raises:
        ManifestError: there is no signature, or it is not from an allowed signer, or not of these bytes.
        RestoreError: it could not be checked.
        OSError: it cannot be read.
    """
    if data is None:
        with open(bmap, "rb") as opened:
            return verify(bmap, allowed_signers, opened)
    try:
        with open(allowed_signers, "rb"):
            pass
    except OSError as error:
        raise ManifestError(f"{allowed_signers}, the list of allowed signers: {error.strerror}") from None
    path = signature_path(bmap)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ManifestError(f"{bmap} is not signed: there is no {path}") from None
    if size > _SIGNATURE_LIMIT:
        raise ManifestError(f"{path} is not a signature")
    where = ["-f", _as_path(allowed_signers), "-s", _as_path(path)]
    found = _run(["ssh-keygen", "-Y", "find-principals", "-n", NAMESPACE, *where], None)
    if found.returncode:
        if _well_formed(path):
            raise ManifestError(f"{path} is not from a signer that {allowed_signers} allows")
        raise ManifestError(f"{path} is not a signature")
    # One key may be listed for several names, and each name for other namespaces and times.
    for principal in found.stdout.decode(errors="surrogateescape").splitlines():
        if not principal:
            continue
        if not _run(["ssh-keygen", "-Y", "verify", "-n", NAMESPACE, f"-I{principal}", *where], data).returncode:
            return printable(principal)
    if not _run(["ssh-keygen", "-Y", "check-novalidate", "-n", NAMESPACE, *where[2:]], data).returncode:
        raise ManifestError(f"{path} is from a key that {allowed_signers} does not allow to sign this, or not any more")
    raise ManifestError(f"{path} does not match {bmap}: one of them was changed, or it was signed for another purpose")


def _well_formed(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"-----BEGIN SSH SIGNATURE-----")
    return False


def _as_path(path: str | Path) -> str:
    """A path that no program takes for an option."""
    text = str(path)
    return f"./{text}" if text.startswith("-") else text


def _run(
    command: list[str], data: IO[bytes] | None, timeout: float | None = _PATIENCE
) -> subprocess.CompletedProcess[bytes]:
    if data is not None:
        os.lseek(data.fileno(), 0, os.SEEK_SET)  # what a child reads from is not what Python's buffer knows of
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL if data is None else data, capture_output=True, timeout=timeout
        )
    except FileNotFoundError:
        raise RestoreError("signatures need ssh-keygen, which is not installed: apt install openssh-client") from None
    except subprocess.TimeoutExpired:
        raise RestoreError("ssh-keygen does not end") from None


def _reason(done: subprocess.CompletedProcess[bytes]) -> str:
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return printable(lines[-1]) if lines else f"ssh-keygen ended with status {done.returncode}"

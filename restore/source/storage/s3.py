"""`s3://BUCKET/KEY` by s3fs: credentials, region and endpoint from where the AWS tools have them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import cache
from typing import Any, Final
from urllib.parse import unquote

import aiohttp
import s3fs
from aiobotocore.session import get_session
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError

from restore.errors import Refused
from restore.source.storage.address import Address
from restore.source.storage.remote import Changed, Forbidden, Gone

_CONNECT: Final = 20.0  # seconds
_POOL: Final = 64  # connections at most
_LOGIN: Final = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


class S3:
    """How to get at objects: `Door`."""

    piece = 4 << 20
    lost = (OSError, EOFError, BotoCoreError, aiohttp.ClientError)

    def __init__(self) -> None:
        """Prepare."""
        self._fs: Any = None  # shared by all connections: it takes long to be made, and has a pool of real ones

    def connect(self, address: Address, timeout: float) -> _Object:
        """Look the object up."""
        if address.user is not None:
            raise Refused(f"{address}: no credentials in an s3:// URL; {_LOGIN}")
        key = unquote(address.path).lstrip("/")
        if not key:
            raise Refused(f"{address}: this URL names a bucket and no object in it")
        if self._fs is None:
            self._fs = _filesystem(timeout)
        return _Object(self._fs, address.host, key)

    def close(self) -> None:
        """Hang up."""
        fs, self._fs = self._fs, None
        if fs is not None and fs._s3 is not None:
            client, fs._s3 = fs._s3, None  # so that nothing is left to be closed when it is collected
            with suppress(Exception):
                asyncio.run_coroutine_threadsafe(client.close(), fs.loop).result(1.0)


@cache
def _descriptions() -> Any:
    """What reads the services' descriptions, once for all: that takes the better part of a second."""
    return get_session().get_component("data_loader")


def _filesystem(timeout: float) -> Any:
    # Trying again is done by who asks, with a word about it.
    limits = {
        "connect_timeout": min(timeout, _CONNECT),
        "read_timeout": timeout,
        "retries": {"max_attempts": 1},
        "max_pool_connections": _POOL,
    }
    session = get_session()
    session.register_component("data_loader", _descriptions())
    fs = s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=limits, session=session)
    fs.retries = 1
    return fs


class _Object:
    """An object: `Connection`."""

    def __init__(self, fs: Any, bucket: str, key: str) -> None:
        self._fs, self._where = fs, {"Bucket": bucket, "Key": key}
        self._lock = threading.Lock()
        self._running: Future[Any] | None = None
        self._cut = False
        self.version = self.look()
        self.size = int(str(self.version[0]))

    def read(self, offset: int, length: int) -> bytes:
        end = min(offset + length, self.size)
        answer: tuple[bytes, str] = self._run(self._get(offset, end))
        data, told = answer
        if told != f"bytes {offset}-{end - 1}/{self.size}" or len(data) != end - offset:
            raise EOFError("the store sends other bytes than were asked for")
        return data

    async def _get(self, offset: int, end: int) -> tuple[bytes, str]:
        asked = {"Range": f"bytes={offset}-{end - 1}", "IfMatch": self.version[1]}
        answer = await self._fs._call_s3("get_object", **self._where, **asked)
        async with answer["Body"] as body:
            return await body.read(), answer.get("ContentRange", "")

    def look(self) -> tuple[object, ...]:
        found = self._run(self._fs._call_s3("head_object", **self._where))
        return int(found["ContentLength"]), str(found["ETag"]), str(found["LastModified"])

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            if self._running is not None:
                self._running.cancel()

    def close(self) -> None:
        self.cut()

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do something in the library's own loop; errors that mean something become ours."""
        with self._lock:
            if self._cut:
                work.close()
                raise EOFError("it was closed")
            running = self._running = asyncio.run_coroutine_threadsafe(work, self._fs.loop)
        try:
            return running.result()
        except CancelledError:
            raise EOFError("no answer in time") from None
        except FileNotFoundError:
            raise Gone from None
        except PermissionError:
            raise Forbidden(
                f"the store does not let it be read; check its policy and the credentials: {_LOGIN}"
            ) from None
        except (NoCredentialsError, PartialCredentialsError):
            raise Forbidden(f"there are no credentials; {_LOGIN}") from None
        except OSError as error:
            if "pre-conditions" in str(error) or "PreconditionFailed" in str(error):
                raise Changed from None
            raise

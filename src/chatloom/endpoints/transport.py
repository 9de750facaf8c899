"""One call over HTTP: sent, read whole within a deadline, and told apart: a reply, or what kind of failure.

urllib3's own time-outs are for each wait on the socket, so a server that sends a byte now and then could hold a call
for ever. Here a timer shuts the socket down at the deadline, whatever the thread is waiting for. Proxies and
certificates are the environment's (HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE); redirects are not followed, since
they could carry the key elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError, LocationParseError, SSLError
from urllib3.util import make_headers

MOST_BYTES = 32 << 20
READ_AT_ONCE = 1 << 16
NO_STATUS = 0  # nothing came back
# 408 and 425 ask to be tried again, 409 is a conflict that passes; 501, 505 and 511 stay as they are.
HEALING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, *range(520, 531), 598, 599})


@dataclass(frozen=True)
class Answer:
    """A whole body with status 200, parsed."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Failure:
    """A call without a usable answer. `heals`: another try may succeed; `wait`: seconds the server asks to wait."""

    status: int
    message: str
    heals: bool
    wait: float | None = None


class Cut:
    """What a timer, or a run that is given up, can do to a call under way: shut its socket down."""

    def __init__(self) -> None:
        self.connection: HTTPConnection | None = None
        self.fired = False

    def now(self) -> None:
        """End whatever the call is waiting for."""
        self.fired = True
        sock = getattr(self.connection, "sock", None)
        while sock is not None and not isinstance(sock, socket.socket):
            sock = getattr(sock, "socket", None)  # TLS inside a proxy's TLS
        if sock is not None:
            with contextlib.suppress(OSError):
                # The plain socket's own method: ssl's would drop the TLS state under the reader.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


_here = threading.local()  # `cut` of the call that this thread is making


class _Watched:
    """A connection that tells its thread's call that it is the one in use."""

    def connect(self) -> None:
        self._tell()
        super().connect()  # type: ignore[misc]
        self._tell()

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._tell()
        super().request(*args, **kwargs)  # type: ignore[misc]

    def _tell(self) -> None:
        if (cut := getattr(_here, "cut", None)) is not None:
            cut.connection = self
            if cut.fired:
                raise TimeoutError


class _PlainConnection(_Watched, HTTPConnection):
    pass


class _SafeConnection(_Watched, HTTPSConnection):
    pass


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = _PlainConnection


class _SafePool(HTTPSConnectionPool):
    ConnectionCls = _SafeConnection


class Transport:
    """Sends calls to one base address. Safe to use from several threads; connections are kept and used again."""

    def __init__(self, address: str, seconds: float, connections: int) -> None:
        self.address, self.seconds = address, seconds
        parts = urlsplit(address)
        self.host = parts.netloc
        proxy = None if urllib.request.proxy_bypass(self.host) else urllib.request.getproxies().get(parts.scheme)
        options: dict[str, Any] = {"maxsize": connections, "block": False}
        if proxy:
            proxy = proxy if "://" in proxy else f"http://{proxy}"
            user = urlsplit(proxy)
            login = f"{user.username}:{user.password or ''}" if user.username else None
            self._pools: urllib3.PoolManager = urllib3.ProxyManager(
                proxy, proxy_headers=make_headers(proxy_basic_auth=login) if login else None, **options
            )
        else:
            self._pools = urllib3.PoolManager(**options)
        self._pools.pool_classes_by_scheme = {"http": _PlainPool, "https": _SafePool}

    def close(self) -> None:
        """Close the connections."""
        self._pools.clear()

    def send(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str], cut: Cut) -> Answer | Failure:
        """One call; raises nothing that the network or the server can cause."""
        timer = threading.Timer(self.seconds, cut.now)
        timer.daemon = True
        _here.cut = cut
        timer.start()
        try:
            return self._send(path, body, headers)
        except SSLError as error:
            if cut.fired:
                return self._late()
            unknown = "CERTIFICATE_VERIFY_FAILED" in str(error)
            hint = "; name the file of its authority in SSL_CERT_FILE" if unknown else ""
            return Failure(NO_STATUS, f"no safe connection to {self.host}: {_short(error)}{hint}", heals=not unknown)
        except LocationParseError as error:
            return Failure(NO_STATUS, f"{self.address} is no address: {_short(error)}", heals=False)
        except (HTTPError, OSError, ValueError) as error:
            # ValueError: what a socket raises that was shut down in the middle of something.
            if cut.fired:
                return self._late()
            return Failure(NO_STATUS, f"no whole answer from {self.host}: {_short(error)}", heals=True)
        finally:
            timer.cancel()
            _here.cut = None

    def _late(self) -> Failure:
        return Failure(NO_STATUS, f"no whole answer from {self.host} within {self.seconds:g} s", heals=True)

    def _send(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> Answer | Failure:
        response = self._pools.request(
            "POST",
            f"{self.address}/{path}",
            body=json.dumps(body, ensure_ascii=True).encode("ascii"),
            headers={"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "chatloom"}
            | dict(headers),
            timeout=urllib3.Timeout(connect=self.seconds, read=self.seconds),
            retries=False,
            redirect=False,
            preload_content=False,
        )
        try:
            content = _read(response)
        except BaseException:
            response.close()  # what is left of the body must not be taken for the next answer
            raise
        response.release_conn()
        if content is None:
            response.close()
            return Failure(response.status, f"an answer of more than {MOST_BYTES >> 20} MB", heals=False)
        if response.status == 200:
            return _parsed(content)
        return _failure(response.status, response.headers, content)


def _read(response: urllib3.BaseHTTPResponse) -> bytes | None:
    pieces, size = [], 0
    for piece in response.stream(READ_AT_ONCE, decode_content=True):
        pieces.append(piece)
        size += len(piece)
        if size > MOST_BYTES:
            return None
    return b"".join(pieces)


def _parsed(content: bytes) -> Answer | Failure:
    try:
        values = json.loads(content)
    except ValueError:
        return Failure(200, f"an answer that is no JSON: {_shown(content)!r}", heals=True)
    if isinstance(values, dict) and isinstance(values.get("error"), dict | str):
        return Failure(200, f"an error with status 200: {_error_text(values)}", heals=True)
    if not isinstance(values, dict):
        return Failure(200, f"an answer that is no JSON object: {_shown(content)!r}", heals=True)
    return Answer(values)


def _failure(status: int, headers: Mapping[str, str], content: bytes) -> Failure:
    try:
        values = json.loads(content)
    except ValueError:
        values = None
    message = _error_text(values) if isinstance(values, dict) else _shown(content)
    if 300 <= status < 400:
        message = f"it redirects to {headers.get('Location', '?')}; give that address"
    # Money that is used up comes as a 429, and no waiting brings it back.
    spent = status == 429 and "insufficient_quota" in content.decode("utf-8", "replace")
    return Failure(status, message, status in HEALING and not spent, asked_to_wait(headers))


def asked_to_wait(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds of Retry-After (a number, or a date), or of retry-after-ms; None where neither can be read."""
    text = headers.get("retry-after-ms")
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, float(text) / 1000) if text else _retry_after(headers.get("Retry-After", ""), now)
    return None


def _retry_after(text: str, now: float | None) -> float | None:
    text = text.strip()
    if not text:
        return None
    if text.replace(".", "", 1).isdigit():
        return float(text)
    return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now))


def _error_text(values: Mapping[str, Any]) -> str:
    """The body's error in words: OpenAI's form, or one of those seen elsewhere."""
    error = values.get("error", values)
    if isinstance(error, dict):
        text = error.get("message") or error.get("detail") or error.get("msg")
        code = error.get("code") or error.get("type")
        error = f"{text} ({code})" if text and code else text or error
    return _shown(str(error).encode("utf-8", "replace"))


def _shown(content: bytes) -> str:
    """The beginning of a body on one line."""
    text = " ".join(content[:2000].decode("utf-8", "replace").split())
    return text[:300] + ("..." if len(text) > 300 else "")


def _short(error: BaseException) -> str:
    """An exception of urllib3 without the objects' addresses in its text."""
    reason = getattr(error, "reason", None)
    text = str(reason if isinstance(reason, BaseException) else error)
    return text.split(">: ", 1)[-1] or type(error).__name__

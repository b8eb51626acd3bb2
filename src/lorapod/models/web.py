"""HTTP for large files: ranges, redirects, and who gets to see a token.

The standard library's client is used, since a body is read here at several times the rate of `httpx` (benchmarks/fetch.py)
and without holding the interpreter; certificates come from `httpx`'s context, proxies from the environment. A token is
sent to the host that it is for and to no other, whatever redirects say, and addresses are shown without their query,
which may hold a signature.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import cache
from urllib.parse import SplitResult, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from lorapod import __version__

CONNECT_SECONDS = 30.0
"""Also the longest wait for the next bytes: a connection that is silent for so long is given up and asked again."""

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 8


class WebError(Exception):
    """An answer that may be another one next time: ask again, after `wait` seconds if the server said so."""

    def __init__(self, text: str, wait: float | None = None) -> None:
        super().__init__(text)
        self.wait = wait


class RefusedError(Exception):
    """An answer that asking again will not change."""

    def __init__(self, status: int, address: str, headers: Mapping[str, str]) -> None:
        super().__init__(f"{address} answered {status}")
        self.status, self.address = status, address
        self.code = headers.get("X-Error-Code", "")


@dataclass(frozen=True)
class Address:
    """Where a file is asked for.

    Attributes:
        url: As it stands in the plan.
        token: Sent as `Authorization: Bearer` to the host of `url` only.
    """

    url: str
    token: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        return shown(self.url)


def shown(url: str) -> str:
    """An address without query, user and password."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{parts.scheme}://{host}{f':{parts.port}' if parts.port else ''}{parts.path}"


@cache
def _context() -> ssl.SSLContext:
    import httpx

    return httpx.create_ssl_context()


class Client:
    """One connection, kept while the host stays the same. For one thread."""

    def __init__(self) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self._host: tuple[str, str] | None = None
        self._socket: socket.socket | None = None

    def abort(self) -> None:
        """Makes a call that waits for this connection's bytes end at once, from another thread."""
        if self._socket is not None:
            with suppress(OSError):  # it is closed already
                self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection, self._host, self._socket = None, None, None

    def get(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """One answer, with its body still to be read; redirects are not followed.

        Raises:
            OSError, http.client.HTTPException: No answer.
        """
        parts = urlsplit(url)
        reused = self._connection is not None
        try:
            return self._ask(parts, headers)
        except (http.client.RemoteDisconnected, http.client.CannotSendRequest, ConnectionError, BrokenPipeError):
            self.close()
            if not reused:
                raise
        return self._ask(parts, headers)  # a kept connection that the server had closed meanwhile

    def _ask(self, parts: SplitResult, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        host = (parts.scheme, parts.netloc)
        if self._connection is None or self._host != host:
            self.close()
            self._connection, self._host = _connect(parts), host
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        if parts.scheme == "http" and _proxy(parts):
            target = f"http://{parts.netloc}{target}"
        common = {"User-Agent": f"lorapod/{__version__}", "Accept-Encoding": "identity"}
        self._connection.request("GET", target or "/", headers={**common, **headers})
        self._socket = self._connection.sock  # an answer that ends the connection keeps it to itself
        return self._connection.getresponse()


def _proxy(parts: SplitResult) -> SplitResult | None:
    if proxy_bypass(parts.hostname or ""):
        return None
    found = getproxies().get(parts.scheme)
    return urlsplit(found if "//" in found else f"http://{found}") if found else None


def _connect(parts: SplitResult) -> http.client.HTTPConnection:
    proxy = _proxy(parts)
    secure = parts.scheme == "https"
    at = proxy or parts
    host, port = at.hostname or "", at.port or (443 if secure and proxy is None else 80)
    if not secure:
        return http.client.HTTPConnection(host, port, timeout=CONNECT_SECONDS)
    connection = http.client.HTTPSConnection(host, port, timeout=CONNECT_SECONDS, context=_context())
    if proxy is not None:
        connection.set_tunnel(parts.hostname or "", parts.port or 443)
    return connection


@dataclass(frozen=True)
class Answer:
    """The start of an answer to a request for bytes.

    Attributes:
        url: Where it came from in the end.
        start: Offset of the first byte of the body.
        total: Bytes of the whole file, None if the server does not say.
        ranges: Whether the server gave the range that was asked for.
    """

    url: str
    response: http.client.HTTPResponse
    start: int
    total: int | None
    ranges: bool

    def header(self, name: str) -> str | None:
        return self.response.getheader(name)

    @property
    def etag(self) -> str | None:
        """The strong ETag, if there is one."""
        etag = self.header("ETag")
        return etag if etag and not etag.startswith("W/") else None


def get_range(
    client: Client, address: Address, start: int, end: int | None, at: str | None = None, if_range: str | None = None
) -> Answer:
    """Asks for bytes `start` to `end` (one past the last) and follows redirects.

    Args:
        at: Where an earlier redirect led; asked in place of `address.url`, without the token if the host is another.

    Raises:
        WebError: Ask again.
        RefusedError: It cannot be had.
        OSError, http.client.HTTPException: No answer, or a broken one.
    """
    home = _origin(address.url)
    url = at or address.url
    for _ in range(_MOST_REDIRECTS):
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        if if_range:
            headers["If-Range"] = if_range
        if address.token and _origin(url) == home:
            headers["Authorization"] = f"Bearer {address.token}"
        response = client.get(url, headers)
        location = response.getheader("Location")
        if response.status not in _REDIRECTS or not location:
            return _checked(client, response, url, start, signed=_origin(url) != home)
        response.read()
        target = urljoin(url, location)
        if urlsplit(target).scheme not in ("http", "https") or (
            urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https"
        ):
            raise RefusedError(response.status, f"{shown(url)} (which leads to {shown(target)})", {})
        url = target
    raise RefusedError(310, f"{address.shown} (which leads from one address to the next)", {})


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _checked(client: Client, response: http.client.HTTPResponse, url: str, start: int, signed: bool) -> Answer:
    status = response.status
    if status == 206:
        got_start, total = _content_range(response.getheader("Content-Range"))
        if got_start != start:
            client.close()
            raise WebError(f"{shown(url)} answered with other bytes than were asked for")
        return Answer(url, response, start, total, True)
    if status == 200:
        length = response.getheader("Content-Length")
        return Answer(url, response, 0, int(length) if length and length.isdigit() else None, False)
    client.close()
    if status in (408, 425, 429) or status >= 500:
        raise WebError(f"{shown(url)} answered {status}", retry_after(response.getheader("Retry-After")))
    if signed and status in (400, 401, 403):
        raise WebError(f"{shown(url)} answered {status}; the signed address may have expired")
    raise RefusedError(status, shown(url), dict(response.getheaders()))


def _content_range(value: str | None) -> tuple[int, int | None]:
    """First byte and total of a Content-Range; -1 for one that cannot be read."""
    unit, _, rest = (value or "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes" or not first.isdigit():
        return -1, None
    return int(first), int(total) if total.isdigit() else None


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After asks for: a number, or a date; None for anything else."""
    if not value:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None

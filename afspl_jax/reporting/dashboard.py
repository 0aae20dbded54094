"""A web page that follows a run from its folder, and images of its data set; it only reads."""

import contextlib
import hashlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from afspl_jax.errors import UserError
from afspl_jax.reporting.html.files import read, stamp
from afspl_jax.reporting.html.page import TEMPLATES, render
from afspl_jax.reporting.status import is_locked

_LOCAL = ("127.0.0.1", "localhost")
_ANY = ("0.0.0.0", "")  # listen on every address of this machine
_REST = 5.0  # times as long as making a page took, until it may be made again
_LONGEST = 30.0  # seconds of that


def serve(
  folder: Path, host: str, port: int, names: Sequence[str] = (), images: bool = True
) -> None:
  """Serves a run's page until interrupted.

  Args:
    folder: the run's; it may be empty, or not there yet.
    host: IPv4 address or name to listen on.
    port: 0 takes any that is free.
    names: by which browsers may ask for the page, besides `host` and the local ones.
    images: whether images of examples are shown.

  Raises:
    UserError: the address is taken, or not this machine's; a name that no browser asks by.
  """
  for name in names:
    if not name or "*" in name or ":" in name:
      raise UserError(
        f"--name: expected a host's name or IPv4 address, without port or wildcard; got {name!r}"
      )
  # uvicorn ends in good order when interrupted, and then raises the same again.
  with socket.socket() as listener, contextlib.suppress(KeyboardInterrupt):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind((host, port))
      listener.listen()  # from here on whoever reads the address below is answered
    except (OSError, OverflowError) as error:
      raise UserError(
        f"{host}:{port}: expected an address that is free on this machine; got: {error}."
        " Choose another with --host and --port"
      ) from error
    address = f"http://{host}:{listener.getsockname()[1]}/"
    print(f"dashboard of {folder}: {address} (Ctrl-C ends it)", flush=True)
    if host in _ANY and not names:
      print(
        "only browsers on this machine are answered: give the name or address by which others ask"
        " for it with --name",
        flush=True,
      )
    os.nice(10)  # training comes first
    config = uvicorn.Config(app(folder, [host, *names], images), log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


def app(folder: Path, names: Sequence[str] = (), images: bool = True) -> Starlette:
  """The page of a run's folder as an application.

  Args:
    folder: the run's.
    names: by which browsers may ask for it, besides the local ones. A page elsewhere, whose name
      was made to point here, cannot read it.
    images: whether images of examples are shown.
  """
  page = Page(folder, images)
  script = FileResponse(TEMPLATES / "live.js", media_type="text/javascript", headers=_HEADERS)
  allowed = [*_LOCAL, *(name.lower() for name in names)]  # browsers ask in lower case
  return Starlette(
    routes=[Route("/", page.answer), Route("/live.js", lambda request: script)],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)],
  )


class Page:
  """A run's page, made again when its files have changed and someone asks."""

  def __init__(self, folder: Path, images: bool):
    self._folder, self._images = folder, images
    self._lock = threading.Lock()
    self._key: object = None
    self._html, self._tag, self._next = "", "", 0.0

  def answer(self, request: Request) -> Response:
    """The page, or that the one which the browser has is still the newest."""
    try:
      with self._lock:  # one is made at a time
        self._make()
        html, tag = self._html, self._tag
    except UserError as error:
      return PlainTextResponse(f"{error}\n", status_code=500)
    headers = _HEADERS | {"ETag": tag}
    if request.headers.get("if-none-match") == tag:
      return Response(status_code=304, headers=headers)
    return Response(html, media_type="text/html", headers=headers)

  def _make(self) -> None:
    if time.monotonic() < self._next:
      return
    begin = time.monotonic()
    files = stamp(self._folder)
    key = files, is_locked(self._folder)
    if key != self._key:
      run = read(self._folder)
      newest = max((changed for _, changed, _ in files), default=0)
      changed = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(newest / 1e9)) if newest else ""
      self._html = render([run], self._images, changed, live=True)
      self._tag = f'"{hashlib.sha256(self._html.encode()).hexdigest()[:32]}"'
      self._key = key
    end = time.monotonic()
    self._next = end + min(_LONGEST, _REST * (end - begin))


_HEADERS = {
  "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
  " connect-src 'self'; script-src 'self'; frame-ancestors 'none'",
  "Cache-Control": "no-cache",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Resource-Policy": "same-origin",
}

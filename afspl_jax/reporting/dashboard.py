"""A local web page that follows a run; it only reads the run folder and the data set."""

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
from afspl_jax.reporting.html.files import files_stamp, read_run
from afspl_jax.reporting.html.page import TEMPLATES, render_page
from afspl_jax.reporting.status import is_locked

_LOCAL = ("127.0.0.1", "localhost")
_ANY = ("0.0.0.0", "")  # listen on every address of this machine
_REST = 5.0  # the pause before a page is made again, as a multiple of the time it took
_LONGEST = 30.0  # seconds; the longest such pause


def serve_dashboard(
  folder: Path, host: str, port: int, names: Sequence[str] = (), images: bool = True
) -> None:
  """Serves a run's page until it is interrupted.

  Args:
    folder: the run folder; it may be empty or not exist yet.
    host: IPv4 address or name to listen on.
    port: the port; 0 selects a free one.
    names: other host names that browsers may use, besides `host` and the local ones.
    images: whether images of examples are shown.

  Raises:
    UserError: the address is in use or does not belong to this machine, or a name is not valid.
  """
  for name in names:
    if not name or "*" in name or ":" in name:
      raise UserError(
        f"--name: expected a host's name or IPv4 address, without port or wildcard; got {name!r}"
      )
  # uvicorn shuts down cleanly when it is interrupted, and then raises KeyboardInterrupt again.
  with socket.socket() as listener, contextlib.suppress(KeyboardInterrupt):
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      listener.bind((host, port))
      listener.listen()  # from now on, requests to the printed address are answered
    except (OSError, OverflowError) as error:
      raise UserError(
        f"{host}:{port}: expected an address that is free on this machine; got: {error}."
        " Choose another with --host and --port"
      ) from error
    address = f"http://{host}:{listener.getsockname()[1]}/"
    print(f"dashboard of {folder}: {address} (Ctrl-C to stop)", flush=True)
    if host in _ANY and not names:
      print(
        "only browsers on this machine are answered. For others, give the name or address that they"
        " use: --name=NAME",
        flush=True,
      )
    os.nice(10)  # training has priority
    config = uvicorn.Config(make_app(folder, [host, *names], images), log_level="warning")
    uvicorn.Server(config).run(sockets=[listener])


def make_app(folder: Path, names: Sequence[str] = (), images: bool = True) -> Starlette:
  """The web application with the page of a run.

  Args:
    folder: the run folder.
    names: other host names that browsers may use. Requests with other names are rejected, so that
      a foreign page cannot read this one by DNS rebinding.
    images: whether images of examples are shown.
  """
  page = LivePage(folder, images)
  script = FileResponse(TEMPLATES / "live.js", media_type="text/javascript", headers=_HEADERS)
  allowed = [*_LOCAL, *(name.lower() for name in names)]  # browsers send lower case
  return Starlette(
    routes=[Route("/", page.answer), Route("/live.js", lambda request: script)],
    middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=allowed, www_redirect=False)],
  )


class LivePage:
  """A run's page; a request makes it again if the files have changed."""

  def __init__(self, folder: Path, images: bool):
    self._folder, self._images = folder, images
    self._lock = threading.Lock()
    self._key: object = None
    self._html, self._tag, self._next = "", "", 0.0

  def answer(self, request: Request) -> Response:
    """Responds with the page, or with 304 if the browser has the newest one."""
    try:
      with self._lock:  # makes one page at a time
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
    files = files_stamp(self._folder)
    key = files, is_locked(self._folder)
    if key != self._key:
      run = read_run(self._folder)
      newest = max((changed for _, changed, _ in files), default=0)
      changed = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(newest / 1e9)) if newest else ""
      self._html = render_page([run], self._images, changed, live=True)
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

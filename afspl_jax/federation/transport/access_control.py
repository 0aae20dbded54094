"""The SuperLink's program: Flower's own, with access control in front.

Flower serves three interfaces on one port. SuperNodes use Fleet and sign their requests. Executors
use Runtime. Control starts runs and registers nodes, and authenticates nobody: anyone who reaches
the port could register a key and take part as a site, stop runs, and submit code. Here only Fleet
is open to the network. All other requests need the secret of the SuperLink's host.
"""

import hmac

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from afspl_jax.federation.transport.flower_private import (
  SuperLinkLifespan,
  _parse_superlink_lifespan_config,
  console_handler,
  create_app,
  get_uvicorn_log_config,
)
from afspl_jax.federation.transport.redelivery import enable_redelivery

_FLEET = "/v1/fleet/"
# Bytes of a request. Flower cuts arrays into 5 MiB, and reads a whole request before it checks the
# signature.
_MAX_BODY = 32 * 2**20


class AccessControl:
  """Passes on requests of SuperNodes and requests with the secret; rejects all others (ASGI).

  Args:
    app: serves the requests that pass.
    secret: expected as `Authorization: Bearer SECRET`.
  """

  def __init__(self, app: ASGIApp, secret: str):
    self._app, self._expected = app, f"Bearer {secret}".encode()

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Serves one request."""
    rejection = None if scope["type"] == "lifespan" else self._rejection(scope)
    await (rejection or self._app)(scope, receive, send)

  def _rejection(self, scope: Scope) -> PlainTextResponse | None:
    headers = Headers(scope=scope)
    token = headers.get("authorization", "").encode()
    if scope["type"] == "http" and hmac.compare_digest(token, self._expected):
      return None
    if scope["type"] != "http" or not scope["path"].startswith(_FLEET):
      return PlainTextResponse("This is for the SuperLink's own host.", 401)
    size = headers.get("content-length", "")
    # The content-length of a chunked body means nothing: the sender may go on for ever.
    is_known = size.isdecimal() and len(size) < 10 and "transfer-encoding" not in headers
    if not is_known or int(size) > _MAX_BODY:
      return PlainTextResponse(f"Expected a request of at most {_MAX_BODY} bytes.", 413)
    return None


def main() -> None:
  """Runs `flower-superlink` with its arguments, and access control."""
  config = _parse_superlink_lifespan_config()
  if config.superexec_auth_secret is None:
    raise ValueError("expected --isolation process and --superexec-auth-secret-file; got neither")
  enable_redelivery()
  app = create_app(config, SuperLinkLifespan)
  app.add_middleware(AccessControl, secret=config.superexec_auth_secret.decode())
  uvicorn.run(
    app,
    host=config.host,
    port=config.port,
    ssl_keyfile=config.ssl_keyfile,
    ssl_certfile=config.ssl_certfile,
    log_config=get_uvicorn_log_config(console_handler.level),
    access_log=False,
  )

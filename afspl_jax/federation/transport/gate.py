"""The SuperLink's program: Flower's own, behind a gate.

Flower serves three interfaces on one port: Fleet for SuperNodes, which sign what they ask for;
Runtime, for whom executes; and Control, for whom starts runs and registers nodes. Control asks
nobody who they are: whoever reaches the port could register a key of their own and take part as a
site, stop runs, and submit code. Here, all but Fleet is for those who know the host's secret.
"""

import hmac

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from afspl_jax.federation.transport import redelivery
from afspl_jax.federation.transport.flower_private import (
  SuperLinkLifespan,
  _parse_superlink_lifespan_config,
  console_handler,
  create_app,
  get_uvicorn_log_config,
)

_FLEET = "/v1/fleet/"
_BODY = 32 * 2**20  # bytes of a request: Flower cuts arrays into 5 MiB; it reads all, then asks who


class Gate:
  """Lets through what SuperNodes ask for, and whoever shows the secret.

  Args:
    app: what is behind the gate.
    secret: shown as `Authorization: Bearer SECRET`.
  """

  def __init__(self, app: ASGIApp, secret: str):
    self._app, self._pass = app, f"Bearer {secret}".encode()

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    """Serves one request (ASGI)."""
    refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
    await (refusal or self._app)(scope, receive, send)

  def _refusal(self, scope: Scope) -> PlainTextResponse | None:
    headers = Headers(scope=scope)
    shown = headers.get("authorization", "").encode()
    if scope["type"] == "http" and hmac.compare_digest(shown, self._pass):
      return None
    if scope["type"] != "http" or not scope["path"].startswith(_FLEET):
      return PlainTextResponse("This is for the SuperLink's own host.", 401)
    size = headers.get("content-length", "")
    # A body in chunks is as long as its sender likes, whatever length is said beside it.
    told = size.isdecimal() and len(size) < 10 and "transfer-encoding" not in headers
    if not told or int(size) > _BODY:
      return PlainTextResponse(f"Expected a request of at most {_BODY} bytes.", 413)
    return None


def main() -> None:
  """`flower-superlink`, with its arguments, behind the gate."""
  config = _parse_superlink_lifespan_config()
  if config.superexec_auth_secret is None:
    raise ValueError("expected --isolation process and --superexec-auth-secret-file; got neither")
  redelivery.install()
  app = create_app(config, SuperLinkLifespan)
  app.add_middleware(Gate, secret=config.superexec_auth_secret.decode())
  uvicorn.run(
    app,
    host=config.host,
    port=config.port,
    ssl_keyfile=config.ssl_keyfile,
    ssl_certfile=config.ssl_certfile,
    log_config=get_uvicorn_log_config(console_handler.level),
    access_log=False,
  )

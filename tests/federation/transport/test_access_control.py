import asyncio

import pytest

from afspl_jax.federation.transport.access_control import AccessControl

SECRET = "0123456789abcdef"


def status_of(path, headers=None, kind="http"):
  """The HTTP status of a request; 200 if access control passes it on."""
  status = []

  async def app(scope, receive, send):
    status.append(200)

  async def send(message):
    status.append(message.get("status"))

  headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
  scope = {"type": kind, "method": "POST", "path": path, "headers": headers}
  asyncio.run(AccessControl(app, SECRET)(scope, None, send))
  return status[0]


def test_requests_of_supernodes_pass():
  assert status_of("/v1/fleet/pull-messages", {"content-length": "12"}) == 200


@pytest.mark.parametrize(
  "path",
  ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/health", "/", "/v1/fleet", ""],
)
def test_all_other_requests_need_the_secret(path):
  assert status_of(path, {"content-length": "12"}) == 401
  assert status_of(path, {"authorization": f"Bearer {SECRET}"}) == 200
  for wrong in ("Bearer ", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}", SECRET, "Bearer ÿ"):
    assert status_of(path, {"authorization": wrong}) == 401


@pytest.mark.parametrize("size", [None, "", "-1", "99999999999", "x"])
def test_a_request_without_the_secret_needs_a_bounded_content_length(size):
  headers = {} if size is None else {"content-length": size}
  assert status_of("/v1/fleet/push-object", headers) == 413


def test_a_chunked_body_is_rejected():
  headers = {"content-length": "12", "transfer-encoding": "chunked"}
  assert status_of("/v1/fleet/push-object", headers) == 413


def test_lifespan_events_pass():
  assert status_of("", kind="lifespan") == 200


def test_a_websocket_is_rejected():
  assert status_of("/v1/fleet/x", {"content-length": "1"}, kind="websocket") != 200

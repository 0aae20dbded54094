import asyncio

import pytest

from afspl_jax.federation.transport.gate import Gate

SECRET = "0123456789abcdef"


def visit(path, headers=None, kind="http"):
  """The status that a request gets; 200 is from behind the gate."""
  status = []

  async def behind(scope, receive, send):
    status.append(200)

  async def send(message):
    status.append(message.get("status"))

  headers = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
  scope = {"type": kind, "method": "POST", "path": path, "headers": headers}
  asyncio.run(Gate(behind, SECRET)(scope, None, send))
  return status[0]


def test_what_supernodes_ask_for_is_let_through():
  assert visit("/v1/fleet/pull-messages", {"content-length": "12"}) == 200


@pytest.mark.parametrize(
  "path",
  ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/health", "/", "/v1/fleet", ""],
)
def test_all_else_asks_for_the_secret(path):
  assert visit(path, {"content-length": "12"}) == 401
  assert visit(path, {"authorization": f"Bearer {SECRET}"}) == 200
  for wrong in ("Bearer ", f"Bearer {SECRET}x", f"Bearer {SECRET[:-1]}", SECRET, "Bearer ÿ"):
    assert visit(path, {"authorization": wrong}) == 401


@pytest.mark.parametrize("size", [None, "", "-1", "99999999999", "x"])
def test_what_comes_unsigned_is_of_a_stated_and_bounded_size(size):
  headers = {} if size is None else {"content-length": size}
  assert visit("/v1/fleet/push-object", headers) == 413


def test_a_body_in_chunks_has_no_size_that_could_be_believed():
  headers = {"content-length": "12", "transfer-encoding": "chunked"}
  assert visit("/v1/fleet/push-object", headers) == 413


def test_the_servers_own_events_pass():
  assert visit("", kind="lifespan") == 200


def test_a_websocket_is_none_of_supernodes_business():
  assert visit("/v1/fleet/x", {"content-length": "1"}, kind="websocket") != 200

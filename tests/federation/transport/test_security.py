"""What a stranger who reaches the SuperLink's port can do."""

import hashlib
import io
import socket
import ssl
import zipfile
from contextlib import ExitStack

import httpx
import pytest
from flwr.proto import control_pb2, fab_pb2, runtime_pb2
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.runtime import RuntimeHttpClient

from afspl_jax.errors import UserError
from afspl_jax.federation.transport import server_executor
from afspl_jax.federation.transport.certificates import make_tls_files
from afspl_jax.federation.transport.connection import (
  BearerTokenInterceptor,
  FlowerService,
  free_port,
)
from afspl_jax.federation.transport.server_executor import open_grid
from afspl_jax.federation.transport.site_keys import make_site_key, read_public_key
from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.federation.transport.supernode import Credentials, SuperNode
from tests.federation.transport.hosts import wait_for

APP = """
[project]
name = "evil"
version = "1"

[tool.flwr.app]
publisher = "stranger"

[tool.flwr.app.components]
serverapp = "evil:server"
clientapp = "evil:client"
"""


def bundle(marker):
  """An app that creates a file when it is imported."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as files:
    files.writestr("pyproject.toml", APP)
    files.writestr("evil.py", f"open({str(marker)!r}, 'w')\nserver = client = None\n")
  data = content.getvalue()
  return fab_pb2.Fab(hash_str=hashlib.sha256(data).hexdigest(), content=data)


def client_of(kind, superlink, *interceptors):
  """A client with the CA and these interceptors."""
  service = superlink.service
  return kind.from_server_address(service.address, False, service.ca, interceptors)


def rejected(call, *arguments):
  with pytest.raises(httpx.HTTPStatusError) as error:
    call(*arguments)
  return error.value.response


def test_control_requests_need_the_hosts_secret(superlink, base):
  key = read_public_key(make_site_key(base / "strangers", "stranger").public)
  with client_of(ControlHttpClient, superlink) as stranger:
    for call, request in [
      (stranger.StartRun, control_pb2.StartRunRequest(fab=bundle(base / "marker"))),
      (stranger.RegisterNode, control_pb2.RegisterNodeRequest(public_key=key)),
      (stranger.UnregisterNode, control_pb2.UnregisterNodeRequest(node_id=1)),
      (stranger.StopRun, control_pb2.StopRunRequest(run_id=1)),
      (stranger.ListNodes, control_pb2.ListNodesRequest()),
    ]:
      assert rejected(call, request).status_code == 401
  wrong = FlowerService(superlink.service.address, "0" * 64, superlink.service.ca)
  assert rejected(wrong.start_run).status_code == 401


def test_an_executor_needs_the_secret_for_our_and_flowers_access_control(superlink):
  request = runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
  with client_of(RuntimeHttpClient, superlink) as stranger:
    assert rejected(stranger.AcquireTask, request).text == "This is for the SuperLink's own host."
  # Past our access control comes Flower's own.
  with client_of(
    RuntimeHttpClient, superlink, BearerTokenInterceptor(superlink.service.secret)
  ) as stranger:
    response = rejected(stranger.AcquireTask, request)
    assert response.status_code == 401
    assert FlowerError.from_json(response.text).code == ApiErrorCode.RUNTIME_AUTHENTICATION_FAILED


def test_only_the_owner_can_read_the_secret(superlink, base):
  file = base / "superlink" / "secret"
  assert file.stat().st_mode & 0o777 == 0o600
  assert file.read_text() == superlink.service.secret
  assert superlink.service.secret not in repr(superlink.service)
  assert all(path.stat().st_mode & 0o077 == 0 for path in (base / "superlink").iterdir())


def test_a_client_that_does_not_trust_the_ca_does_not_connect(superlink, base):
  other = make_tls_files(base / "other", [])
  url = f"https://{superlink.service.address}/v1/fleet/activate-node"
  for trust in (True, ssl.create_default_context(cafile=str(other.ca))):
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
      httpx.post(url, verify=trust)
  with pytest.raises(httpx.HTTPError):
    httpx.post(url.replace("https", "http"))


def test_an_unregistered_site_and_one_with_another_ca_do_not_connect(superlink, base):
  own = make_tls_files(base / "other_ca", []).ca
  ca = base / "keys" / "ca.crt"
  with ExitStack() as stack:
    nodes, notices = [], {}
    for site, trusted in [("unknown", ca), ("deceived", own)]:
      notices[site] = []
      key = make_site_key(base / "unregistered", site).private
      node = SuperNode(
        base / site,
        superlink.service.address,
        site,
        Credentials(trusted, key),
        {},
        notices[site].append,
      )
      nodes.append(stack.enter_context(node))

    def all_reported():
      for node in nodes:
        node.supervise()
      return all(notices.values())

    wait_for(all_reported, "two rejections")
  assert notices["unknown"][0].startswith(
    "unknown: its SuperNode ended, rejected: the server does not know this site's key, or"
  )
  assert notices["deceived"][0].startswith(
    "deceived: its SuperNode ended, because it does not trust the server: the"
  )


def start_foreign(superlink, marker):
  with superlink.service.control_client() as someone_with_the_secret:
    request = control_pb2.StartRunRequest(fab=bundle(marker))
    return someone_with_the_secret.StartRun(request).run_id


def ending(superlink, run_id):
  """The status of an ended run, and the reason."""
  with superlink.service.control_client() as client:
    run = client.ListRuns(control_pb2.ListRunsRequest(run_id=run_id)).run_dict[run_id]
  assert run.status.status == "finished"
  return run.status.sub_status, run.status.details


def test_a_foreign_run_is_never_executed(superlink, base):
  foreign = start_foreign(superlink, base / "executed")
  with open_grid(superlink) as grid:  # its run is second in the queue
    assert grid.get_node_ids() == []
  assert ending(superlink, grid.run.run_id) == ("completed", "")
  assert ending(superlink, foreign) == ("stopped", "")
  assert not (base / "executed").exists()


def test_the_executor_ends_a_foreign_run_that_is_first_in_the_queue(superlink, base, caplog):
  foreign = start_foreign(superlink, base / "executed")
  ours = superlink.service.start_run()
  assert server_executor._acquire_run(superlink.service, ours)
  assert ending(superlink, foreign) == ("failed", server_executor._FOREIGN_RUN)
  assert str(foreign) in caplog.text and not (base / "executed").exists()


@pytest.mark.parametrize(
  "error, how",
  [
    (ZeroDivisionError("by zero"), ("failed", "ZeroDivisionError: by zero")),
    (KeyboardInterrupt(), ("stopped", "KeyboardInterrupt: ")),
  ],
)
def test_a_run_ends_with_the_servers_error(superlink, error, how):
  with pytest.raises(type(error)), open_grid(superlink) as grid:
    raise error
  assert ending(superlink, grid.run.run_id) == how


def test_a_port_in_use_is_an_error(base, tls_files):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with (
      pytest.raises(UserError, match=rf"port: expected a free port on 127\.0\.0\.1; got {port}"),
      SuperLink(base / "second", "127.0.0.1", port, tls_files),
    ):
      pass


def test_a_superlink_that_does_not_start_gives_the_reason(base, tls_files):
  (base / "broken" / "superlink.db").mkdir(parents=True)
  with (
    pytest.raises(
      UserError, match=r"SuperLink: expected it to start; it ended with status 1: .*log\)"
    ),
    SuperLink(base / "broken", "127.0.0.1", free_port(), tls_files),
  ):
    pass

"""What who reaches the SuperLink's port can do, and is none of the federation."""

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
from afspl_jax.federation.transport import executors
from afspl_jax.federation.transport.certificates import make_server_keys
from afspl_jax.federation.transport.connection import Endpoint, _Pass, free_port
from afspl_jax.federation.transport.executors import open_grid
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
  """An app that leaves a file when it is imported."""
  content = io.BytesIO()
  with zipfile.ZipFile(content, "w") as files:
    files.writestr("pyproject.toml", APP)
    files.writestr("evil.py", f"open({str(marker)!r}, 'w')\nserver = client = None\n")
  data = content.getvalue()
  return fab_pb2.Fab(hash_str=hashlib.sha256(data).hexdigest(), content=data)


def client_of(kind, superlink, *interceptors):
  """A client that has the CA, and what these interceptors show."""
  endpoint = superlink.endpoint
  return kind.from_server_address(endpoint.address, False, endpoint.ca, interceptors)


def refused(call, *arguments):
  with pytest.raises(httpx.HTTPStatusError) as error:
    call(*arguments)
  return error.value.response


def test_control_is_for_the_superlinks_own_host(superlink, base):
  key = read_public_key(make_site_key(base / "strangers", "stranger").public)
  with client_of(ControlHttpClient, superlink) as stranger:
    for call, request in [
      (stranger.StartRun, control_pb2.StartRunRequest(fab=bundle(base / "marker"))),
      (stranger.RegisterNode, control_pb2.RegisterNodeRequest(public_key=key)),
      (stranger.UnregisterNode, control_pb2.UnregisterNodeRequest(node_id=1)),
      (stranger.StopRun, control_pb2.StopRunRequest(run_id=1)),
      (stranger.ListNodes, control_pb2.ListNodesRequest()),
    ]:
      assert refused(call, request).status_code == 401
  wrong = Endpoint(superlink.endpoint.address, "0" * 64, superlink.endpoint.ca)
  assert refused(wrong.start_run).status_code == 401


def test_work_is_for_who_has_the_secret_twice_over(superlink):
  request = runtime_pb2.AcquireTaskRequest(supported_task_types=["flwr-serverapp"])
  with client_of(RuntimeHttpClient, superlink) as stranger:
    assert refused(stranger.AcquireTask, request).text == "This is for the SuperLink's own host."
  # Past our gate is Flower's own.
  with client_of(RuntimeHttpClient, superlink, _Pass(superlink.endpoint.secret)) as stranger:
    response = refused(stranger.AcquireTask, request)
    assert response.status_code == 401
    assert FlowerError.from_json(response.text).code == ApiErrorCode.RUNTIME_AUTHENTICATION_FAILED


def test_the_secret_is_for_its_owner_alone(superlink, base):
  file = base / "superlink" / "secret"
  assert file.stat().st_mode & 0o777 == 0o600
  assert file.read_text() == superlink.endpoint.secret
  assert superlink.endpoint.secret not in repr(superlink.endpoint)
  assert all(path.stat().st_mode & 0o077 == 0 for path in (base / "superlink").iterdir())


def test_who_is_not_sure_of_the_server_does_not_talk_to_it(superlink, base):
  other = make_server_keys(base / "other", [])
  url = f"https://{superlink.endpoint.address}/v1/fleet/activate-node"
  for trust in (True, ssl.create_default_context(cafile=str(other.ca))):
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
      httpx.post(url, verify=trust)
  with pytest.raises(httpx.HTTPError):
    httpx.post(url.replace("https", "http"))


def test_a_site_that_is_not_registered_or_has_another_ca_stays_out(superlink, base):
  own = make_server_keys(base / "other_ca", []).ca
  ca = base / "keys" / "ca.crt"
  with ExitStack() as stack:
    nodes, said = [], {}
    for site, trusted in [("unknown", ca), ("deceived", own)]:
      said[site] = []
      key = make_site_key(base / "unregistered", site).private
      node = SuperNode(
        base / site,
        superlink.endpoint.address,
        site,
        Credentials(trusted, key),
        {},
        said[site].append,
      )
      nodes.append(stack.enter_context(node))

    def all_said():
      for node in nodes:
        node.check()
      return all(said.values())

    wait_for(all_said, "refusals")
  assert said["unknown"][0].startswith(
    "unknown: its SuperNode ended, refused: the server does not know this site's key, or"
  )
  assert said["deceived"][0].startswith(
    "deceived: its SuperNode ended, refusing the server: its certificate"
  )


def start_foreign(superlink, marker):
  with superlink.endpoint.control() as someone_with_the_secret:
    request = control_pb2.StartRunRequest(fab=bundle(marker))
    return someone_with_the_secret.StartRun(request).run_id


def ending(superlink, run_id):
  """How a run ended, and why."""
  with superlink.endpoint.control() as client:
    run = client.ListRuns(control_pb2.ListRunsRequest(run_id=run_id)).run_dict[run_id]
  assert run.status.status == "finished"
  return run.status.sub_status, run.status.details


def test_a_foreign_run_is_never_executed(superlink, base):
  foreign = start_foreign(superlink, base / "executed")
  with open_grid(superlink) as grid:  # whose run is younger, and would be second in the queue
    assert grid.get_node_ids() == []
  assert ending(superlink, grid.run.run_id) == ("completed", "")
  assert ending(superlink, foreign) == ("stopped", "")
  assert not (base / "executed").exists()


def test_a_foreign_run_that_comes_between_is_ended_by_the_executor(superlink, base, caplog):
  foreign = start_foreign(superlink, base / "executed")
  ours = superlink.endpoint.start_run()
  assert executors._acquire_run(superlink.endpoint, ours)
  assert ending(superlink, foreign) == ("failed", executors._FOREIGN)
  assert str(foreign) in caplog.text and not (base / "executed").exists()


@pytest.mark.parametrize(
  "error, how",
  [
    (ZeroDivisionError("by zero"), ("failed", "ZeroDivisionError: by zero")),
    (KeyboardInterrupt(), ("stopped", "KeyboardInterrupt: ")),
  ],
)
def test_a_run_ends_as_its_server_ended(superlink, error, how):
  with pytest.raises(type(error)), open_grid(superlink) as grid:
    raise error
  assert ending(superlink, grid.run.run_id) == how


def test_a_port_in_use_is_told_of_in_one_line(base, server_keys):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with (
      pytest.raises(UserError, match=rf"port: expected one that is free on 127\.0\.0\.1; {port}"),
      SuperLink(base / "second", "127.0.0.1", port, server_keys),
    ):
      pass


def test_a_superlink_that_does_not_start_says_why(base, server_keys):
  (base / "broken" / "superlink.db").mkdir(parents=True)
  with (
    pytest.raises(UserError, match=r"SuperLink: expected it to start; it ended, status 1: .*log\)"),
    SuperLink(base / "broken", "127.0.0.1", free_port(), server_keys),
  ):
    pass

"""Three sites, a SuperLink, TLS and authentication, on this host."""

import os
import re
import signal
import sys
import time
from typing import NamedTuple

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.control_pb2 import StopRunRequest
from flwr.serverapp import Grid

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.protocol.image_statistics import STATISTICS
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.federation.transport.server_executor import RunLost, open_grid
from afspl_jax.federation.transport.site_keys import make_site_key
from afspl_jax.federation.transport.superlink import SuperLink
from tests.federation.least_squares import LeastSquares, init_params
from tests.federation.routed_sites import statistics
from tests.federation.transport.faulty_superlink import DIE_FILE, HELD_FILE, HOLD_FILE
from tests.federation.transport.hosts import TIMEOUT, exists, pids, start, wait_for

SITES = ["site_00", "site_01", "site_02"]


class Deployment(NamedTuple):
  superlink: SuperLink
  grid: Grid
  nodes: list[int]
  in_process: dict[str, list[Message]]  # a LocalGrid's replies to the same messages
  sites_output: object  # file with the output of the sites' host


def train_messages(nodes, structure=None, group="1"):
  params = init_params()
  structure = structure or wire.structure_digest(params)
  config = ConfigRecord({wire.STRUCTURE: structure, wire.ROUND: 1})
  content = RecordDict({wire.ARRAYS: wire.pack(params), wire.CONFIG: config})
  return [Message(content, node, wire.TRAIN, group_id=group) for node in nodes]


def statistics_messages(nodes):
  return [Message(RecordDict(), node, STATISTICS, group_id="0") for node in nodes]


def collect(grid, message_ids):
  """Waits for the replies to all messages."""
  replies, waiting = [], set(message_ids)

  def all_there():
    new = grid.pull_messages(waiting)
    replies.extend(new)
    waiting.difference_update(reply.metadata.reply_to_message_id for reply in new)
    return not waiting

  wait_for(all_there, "replies")
  return replies


def by_site(replies):
  """The replies in the order of sites: each has one example more than the one before it."""
  return sorted(replies, key=lambda reply: reply.content.metric_records["metrics"]["num-examples"])


@pytest.fixture(scope="module")
def deployment(base, superlink):
  app = SiteApp(LeastSquares(), init_params(), statistics=statistics)
  local = LocalGrid(app, len(SITES))
  nodes = local.get_node_ids()
  in_process = {
    "train": local.send_and_receive(train_messages(nodes)),
    "statistics": local.send_and_receive(statistics_messages(nodes)),
    "fault": local.send_and_receive(train_messages(nodes, "another model")),
  }
  for site in SITES:
    superlink.register(make_site_key(base / "keys", site).public)
    superlink.register(base / "keys" / f"{site}.pub")  # again
  out = base / "sites"
  host = start("site_host.py", superlink.service.address, base, *SITES, out=out)
  try:
    with open_grid(superlink) as grid:
      wait_for(lambda: len(grid.get_node_ids()) == len(SITES) or host.poll() is not None, "sites")
      assert host.poll() is None, out.read_text()
      yield Deployment(superlink, grid, grid.get_node_ids(), in_process, out)
    host.terminate()
    assert host.wait(TIMEOUT) == 0, out.read_text()  # SIGTERM ends it cleanly
  finally:
    host.kill()
    host.wait()


def test_replies_are_those_of_one_process(deployment):
  messages = train_messages(deployment.nodes)
  ids = deployment.grid.push_messages(messages)
  assert ids == [message.metadata.message_id for message in messages]
  replies = collect(deployment.grid, ids)
  assert {reply.metadata.reply_to_message_id for reply in replies} == set(ids)
  assert {reply.metadata.src_node_id for reply in replies} == set(deployment.nodes)
  in_process = deployment.in_process["train"]
  for ours, theirs in zip(by_site(replies), by_site(in_process), strict=True):
    assert wire.serialized(ours.content) == wire.serialized(theirs.content)


def test_statistics_of_images_are_those_of_one_process(deployment):
  replies = deployment.grid.send_and_receive(statistics_messages(deployment.nodes), timeout=TIMEOUT)
  contents = [
    sorted((wire.serialized(reply.content) for reply in found), key=list)
    for found in (replies, deployment.in_process["statistics"])
  ]
  assert contents[0] == contents[1] and len(contents[0]) == len(SITES)


def test_an_exception_becomes_the_same_error_reply_as_in_one_process(deployment):
  messages = train_messages(deployment.nodes, "another model")
  replies = deployment.grid.send_and_receive(messages, timeout=TIMEOUT)
  for ours, theirs in zip(replies, deployment.in_process["fault"], strict=True):
    assert (ours.error.code, ours.error.reason) == (theirs.error.code, theirs.error.reason)
    assert ours.error.reason.startswith("WireError: structure of the params: this site has")


def test_a_node_has_the_name_of_its_registered_key(deployment):
  sites = [deployment.grid.site_of(node) for node in deployment.grid.get_node_ids()]
  assert sorted(sites) == SITES


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux has")
def test_no_process_sends_telemetry(deployment):
  children = pids(deployment.sites_output) | {"superlink": deployment.superlink.child.pid}
  assert set(children) == {*SITES, "superlink"}
  for pid in children.values():
    with open(f"/proc/{pid}/environ") as file:
      variables = file.read().split("\0")
    assert {"FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1"} <= set(variables)


# The second restart within a minute waits twice as long.
@pytest.mark.parametrize("when, wait", [("at once", "1"), (DIE_FILE, "[12]")])
def test_no_reply_is_lost_when_the_superlink_dies(deployment, when, wait):
  grid, superlink = deployment.grid, deployment.superlink
  superlink.notices.clear()
  dead = superlink.child
  if when == DIE_FILE:
    (dead.log.parent / when).touch()
  ids = grid.push_messages(train_messages(deployment.nodes, group=when))
  if when == "at once":
    os.kill(dead.pid, signal.SIGKILL)
  replies = collect(grid, ids)
  assert not any(reply.has_error() for reply in replies)
  assert superlink.child.pid != dead.pid
  (line,) = superlink.notices
  expected = rf"SuperLink at 127.0.0.1:\d+ ended, signal 9: .* It starts again in {wait} s"
  assert re.match(expected, line)


@pytest.mark.slow
def test_a_killed_supernode_is_reported_and_reconnects(deployment):
  pid = pids(deployment.sites_output)[SITES[0]]
  os.kill(pid, signal.SIGKILL)
  begin = time.monotonic()
  replies = deployment.grid.send_and_receive(train_messages(deployment.nodes, group="3"))
  print(f"\nerror reply after {time.monotonic() - begin:.1f} s")
  (lost,) = [reply for reply in replies if reply.has_error()]
  assert "unavailable" in lost.error.reason.lower()
  wait_for(lambda: len(deployment.grid.get_node_ids()) == len(SITES), "reconnected SuperNode")
  print(f"back after {time.monotonic() - begin:.1f} s")
  output = deployment.sites_output.read_text()
  assert f"{SITES[0]}: its SuperNode ended, signal 9" in output
  assert "rejected: the server does not know this site's key, or has not yet dropped" in output
  again = deployment.grid.send_and_receive(train_messages(deployment.nodes, group="4"))
  assert sorted(reply.metadata.src_node_id for reply in again) == sorted(deployment.nodes)
  assert not any(reply.has_error() for reply in again) and not exists(pid)


def test_an_ended_run_raises_run_lost(deployment):
  """After all tests of that run: it ends it."""
  with deployment.superlink.service.control_client() as client:
    client.StopRun(StopRunRequest(run_id=deployment.grid.run.run_id))
  with pytest.raises(RunLost, match=r"the SuperLink has ended this run .* to go on"):
    deployment.grid.get_node_ids()


@pytest.mark.parametrize("times", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_sites_answer_the_next_run_if_one_ends_while_they_receive_a_message(deployment, times):
  superlink = deployment.superlink
  hold, held = (superlink.child.log.parent / name for name in (HOLD_FILE, HELD_FILE))
  for i in range(times):
    with open_grid(superlink) as grid:
      hold.touch()
      grid.push_messages(train_messages(deployment.nodes, group=f"lost {i}"))
      wait_for(held.exists, "request for arrays")
    hold.unlink()  # the run has ended
    held.unlink()
    with open_grid(superlink) as grid:
      begin = time.monotonic()
      replies = collect(grid, grid.push_messages(train_messages(deployment.nodes, group=f"{i}")))
      print(f"{i}: answered after {time.monotonic() - begin:.1f} s")
    assert not any(reply.has_error() for reply in replies), i

import os
import signal
import sys
import time

import pytest

from afspl_jax.federation.transport import child_process
from afspl_jax.federation.transport.child_process import Child, Kept
from afspl_jax.federation.transport.connection import free_port
from tests.federation.transport.hosts import exists, pids, start, wait_for

PROGRAM = """
import os, signal, sys, time

def wait():
  print("started", flush=True)
  time.sleep(600)

def fail():
  print("INFO :      nothing to see here")
  print("\\x1b[91mERROR \\x1b[0m:   Exit Code: 305")
  print("The port is taken.")
  print("For more information, visit: <https://example.org>")
  sys.exit(1)

def deaf():
  signal.signal(signal.SIGTERM, signal.SIG_IGN)
  wait()

def tell():
  print(*sorted(f"{k} {v}" for k, v in os.environ.items() if k.startswith("FLWR_")), sep="\\n")
  print(*sys.argv[1:])
  print("slow", [name for name in ("jax", "numpy", "flwr") if name in sys.modules])
  open("made", "w").close()
"""


@pytest.fixture
def child(tmp_path, monkeypatch):
  """Starts functions of the program above."""
  (tmp_path / "program.py").write_text(PROGRAM)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  started = []

  def make(function, *arguments):
    started.append(Child(f"program:{function}", arguments, tmp_path / "child"))
    return started[-1]

  yield make
  for child in started:
    child.end()


def running(child):
  wait_for(lambda: "started" in child.output(), "start of a child")
  return child


def test_a_child_calls_nobody_home_and_writes_for_its_owner_alone(child, tmp_path, monkeypatch):
  monkeypatch.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")  # would open a port without a gate
  one = child("tell", "--some", "argument")
  wait_for(lambda: not one.alive(), "end of a child")
  assert one.output().splitlines() == [
    "FLWR_DISABLE_UPDATE_CHECK 1",
    f"FLWR_HOME {tmp_path / 'child' / 'flwr'}",
    "FLWR_LOG_LEVEL INFO",
    "FLWR_TELEMETRY_ENABLED 0",
    "--some argument",
    "slow []",  # starts at once
  ]
  assert (tmp_path / "child").stat().st_mode & 0o777 == 0o700
  assert (tmp_path / "child" / "made").stat().st_mode & 0o777 == 0o600


def test_the_terminals_interrupt_is_not_for_children(child):
  assert os.getpgid(running(child("wait")).pid) not in (os.getpgid(0), 0)


def test_the_last_words_of_a_child_are_one_line(child):
  one = child("fail")
  wait_for(lambda: not one.alive(), "end of a child")
  assert one.why() == f"status 1: The port is taken. ({one.log})"


def test_only_the_words_of_the_latest_start_count(child):
  one = child("fail")
  wait_for(lambda: not one.alive(), "end of a child")
  two = running(child("wait"))
  two.end()
  assert two.why() == f"signal 15: started ({two.log})"


def test_a_child_that_does_not_listen_is_killed(child, monkeypatch):
  monkeypatch.setattr(child_process, "_GRACE", 0.1)
  one = running(child("deaf"))
  one.end()
  assert one.why().startswith("signal 9: ") and not exists(one.pid)


def test_a_dead_child_is_started_again_after_ever_longer_waits(child, monkeypatch):
  monkeypatch.setattr(child_process, "_WAITS", (0.1, 0.2))
  said = []
  kept = Kept("node", lambda: child("fail"), said.append, {"port is taken": "by someone else"})
  first = kept.child

  def third():
    kept.check()
    return len(said) == 3

  wait_for(third, "three ends")
  assert kept.child is not first
  assert said[0] == "node ended, by someone else. It starts again in 0 s"
  begin = time.monotonic()
  wait_for(lambda: kept.check() or kept.child.alive(), "a start")
  assert time.monotonic() - begin > 0.1


def test_a_child_that_lives_is_left_alone(child):
  kept = Kept("node", lambda: child("wait"), pytest.fail)
  for _ in range(3):
    kept.check()
  assert kept.child.alive()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux has")
def test_no_process_of_flower_is_left_when_a_host_is_killed(tmp_path):
  out = tmp_path / "out"
  nowhere = "http://127.0.0.1:9"  # a proxy is not for what stays on the host
  proxies = {name: nowhere for name in ("http_proxy", "https_proxy", "all_proxy")}
  parent = start("parent.py", tmp_path, free_port(), out=out, **proxies)
  try:
    wait_for(lambda: "connected to" in out.read_text(), "a SuperNode that is connected")
    ours = pids(out)
    assert set(ours) == {"superlink", "supernode"} and all(map(exists, ours.values()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(map(exists, ours.values())), "end of orphans", 15)
  finally:
    parent.kill()
    parent.wait()

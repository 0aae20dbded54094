import os
import signal
import sys
import time

import pytest

from afspl_jax.federation.transport import child_process
from afspl_jax.federation.transport.child_process import ChildProcess, SupervisedProcess
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

def ignore_sigterm():
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
    started.append(ChildProcess(f"program:{function}", arguments, tmp_path / "child"))
    return started[-1]

  yield make
  for child in started:
    child.stop()


def running(child):
  wait_for(lambda: "started" in child.output(), "started child")
  return child


def test_a_child_sends_no_telemetry_and_its_files_are_private(child, tmp_path, monkeypatch):
  monkeypatch.setenv(
    "FLWR_INTERNAL_GRPC_CONTROL_API", "1"
  )  # would open a port without access control
  one = child("tell", "--some", "argument")
  wait_for(lambda: not one.is_running(), "ended child")
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


def test_ctrl_c_in_the_terminal_does_not_reach_children(child):
  assert os.getpgid(running(child("wait")).pid) not in (os.getpgid(0), 0)


def test_the_exit_reason_is_the_end_of_the_output_in_one_line(child):
  one = child("fail")
  wait_for(lambda: not one.is_running(), "ended child")
  assert one.exit_reason() == f"status 1: The port is taken. ({one.log})"


def test_the_exit_reason_ignores_earlier_starts(child):
  one = child("fail")
  wait_for(lambda: not one.is_running(), "ended child")
  two = running(child("wait"))
  two.stop()
  assert two.exit_reason() == f"signal 15: started ({two.log})"


def test_a_child_that_ignores_sigterm_is_killed(child, monkeypatch):
  monkeypatch.setattr(child_process, "_GRACE", 0.1)
  one = running(child("ignore_sigterm"))
  one.stop()
  assert one.exit_reason().startswith("signal 9: ") and not exists(one.pid)


def test_a_dead_child_is_restarted_after_growing_waits(child, monkeypatch):
  monkeypatch.setattr(child_process, "_WAITS", (0.1, 0.2))
  notices = []
  supervised = SupervisedProcess(
    "node", lambda: child("fail"), notices.append, {"port is taken": "by someone else"}
  )
  first = supervised.child

  def third():
    supervised.restart_if_ended()
    return len(notices) == 3

  wait_for(third, "third end")
  assert supervised.child is not first
  assert notices[0] == "node ended, by someone else. It starts again in 0 s"
  begin = time.monotonic()
  wait_for(lambda: supervised.restart_if_ended() or supervised.child.is_running(), "restart")
  assert time.monotonic() - begin > 0.1


def test_a_running_child_is_not_restarted(child):
  supervised = SupervisedProcess("node", lambda: child("wait"), pytest.fail)
  for _ in range(3):
    supervised.restart_if_ended()
  assert supervised.child.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which Linux has")
def test_no_flower_process_survives_a_killed_host(tmp_path):
  out = tmp_path / "out"
  nowhere = "http://127.0.0.1:9"  # loopback connections must not use the proxy
  proxies = {name: nowhere for name in ("http_proxy", "https_proxy", "all_proxy")}
  parent = start("parent.py", tmp_path, free_port(), out=out, **proxies)
  try:
    wait_for(lambda: "connected to" in out.read_text(), "connected SuperNode")
    ours = pids(out)
    assert set(ours) == {"superlink", "supernode"} and all(map(exists, ours.values()))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: not any(map(exists, ours.values())), "end of the children")
  finally:
    parent.kill()
    parent.wait()

"""The parts of a soak that need no federation: its schedule, its lines, and what it finds."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections import Counter

import pytest

from benchmarks.soak import checks, files, processes, service
from benchmarks.soak.processes import Usage
from benchmarks.soak.proxy import Rate, SlowLine
from benchmarks.soak.report import early_samples, late_samples, make_report
from benchmarks.soak.schedule import (
  ROLES,
  SERVER,
  SITE,
  SUPERLINK,
  disturbances,
  role_of,
  supernode_of,
)
from benchmarks.soak.service import Exit, Service
from benchmarks.soak.soak import Events, Sample, calm_from, disk_use, newest_round

SITES = ("aachen", "bonn")


def test_a_seed_decides_every_disturbance_of_a_round():
  drawn = [disturbances(7, round, 1.0, SITES) for round in range(50)]
  assert drawn == [disturbances(7, round, 1.0, SITES) for round in range(50)]
  assert drawn != [disturbances(8, round, 1.0, SITES) for round in range(50)]
  assert disturbances(7, 3, 0.0, SITES) == []


def test_disturbances_have_their_rate_and_reach_every_process_in_both_ways():
  drawn = [each for round in range(2000) for each in disturbances(0, round, 0.5, SITES)]
  assert 0.45 < len(drawn) / 2000 < 0.55  # 32 standard deviations of the mean are 0.5
  names = {SERVER, SUPERLINK, *SITES, *map(supernode_of, SITES)}
  assert {(each.process, each.stop > 0) for each in drawn} == {
    (name, stops) for name in names for stops in (False, True)
  }
  assert all(0 <= each.delay <= 6 for each in drawn)
  roles = Counter(role_of(each.process) for each in drawn)
  assert roles.keys() == set(ROLES) and min(roles.values()) > 0.2 * len(drawn)
  # Long enough for the SuperLink to end the run, whose lease is a minute.
  assert max(each.stop for each in drawn if each.process == SUPERLINK) == 75


def test_only_processes_of_the_given_roles_are_disturbed():
  drawn = [each for round in range(50) for each in disturbances(0, round, 1.0, SITES, [SITE])]
  assert {each.process for each in drawn} == set(SITES)


def test_a_line_carries_its_rate_however_many_send():
  now, waited = [0.0], []

  async def sleep(seconds):
    waited.append(seconds)

  async def send():
    rate = Rate(100, clock=lambda: now[0], sleep=sleep)
    await rate.send(50)
    await rate.send(50)  # behind the first
    now[0] = 10.0
    await rate.send(25)  # the line has been free since 1.0
    await Rate(0, clock=lambda: now[0], sleep=sleep).send(10**9)

  asyncio.run(send())
  assert waited == [0.5, 1.0, 0.25]


def echo_once(listener, got):
  """Answers a connection with what it sent, when it has sent all."""
  connection, _ = listener.accept()
  with connection:
    while data := connection.recv(4096):
      got.append(data)
    connection.sendall(b"".join(got))


def test_a_line_forwards_every_byte_both_ways_and_an_end_of_sending():
  sent, got, back = os.urandom(100_000), [], []
  with socket.create_server(("127.0.0.1", 0)) as listener:
    target = threading.Thread(target=echo_once, args=(listener, got))
    target.start()
    with SlowLine(listener.getsockname()[1], 10e6) as line:
      with socket.create_connection(("127.0.0.1", line.port)) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        while data := client.recv(4096):
          back.append(data)
      target.join()
      assert line.carried == [len(sent), len(sent)]
  assert b"".join(got) == b"".join(back) == sent


@pytest.mark.parametrize("forwarder", [False, True])
def test_a_line_to_nowhere_resets_or_closes_the_connection(forwarder):
  with socket.create_server(("127.0.0.1", 0)) as listener:
    port = listener.getsockname()[1]
  with (
    SlowLine(port, 0, forwarder) as line,
    socket.create_connection(("127.0.0.1", line.port)) as client,
    contextlib.nullcontext() if forwarder else pytest.raises(ConnectionResetError),
  ):
    assert client.recv(1) == b""


def test_a_process_is_found_by_its_mark_and_named_by_its_command(tmp_path):
  command = [sys.executable, "-c", "print(flush=True); input()", "--role=server"]
  environment = os.environ | {processes.MARK: "a mark of this test"}
  with subprocess.Popen(
    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
  ) as child:
    child.stdout.read(1)  # it is itself by now, and no copy of this process
    assert processes.find("a mark of this test") == {child.pid: SERVER}
    assert processes.pid_of("a mark of this test", SERVER) == child.pid
    assert processes.pid_of("a mark of this test", SUPERLINK) is None
    (used,) = processes.usage("a mark of this test")
    assert (used.name, used.pid, used.threads, used.files) == (SERVER, child.pid, 1, 3)
    assert 1e6 < used.memory < 1e9
    child.stdin.close()
  assert processes.find("a mark of this test") == {}


@pytest.mark.parametrize(
  ("command", "name"),
  [
    (["python", "launch.py", "--role=server", "--superlink=h:1"], SERVER),
    (["python", "launch.py", "--role=client", "--superlink=h:1", "--site=bonn"], "bonn"),
    (["python", "-m", "child_main", "a.b.access_control:main", "--host"], SUPERLINK),
    (["python", "-m", "child_main", "a.supernode_program:main", "--superlink"], "bonn SuperNode"),
    (["sleep", "5"], "other: sleep 5"),
  ],
)
def test_names_of_processes(command, name):
  assert processes.name_of(command, "/run/supernode/bonn") == name


def test_a_service_is_started_again_until_it_succeeds(tmp_path, monkeypatch):
  monkeypatch.setattr(service, "_RESTART_AFTER", 0.0)
  script = "test -e again && exit 0; touch again; echo not yet; exit 3"
  each = Service("one", ["sh", "-c", script], tmp_path / "log", os.environ, tmp_path)
  exits = []
  while not each.ended:
    if ended := each.supervise():
      exits.append(ended)
  assert exits == [Exit("one", 3, "not yet"), Exit("one", 0, "not yet")]
  assert each.supervise() is None and each.wait(1) is None


def test_a_progress_bar_is_not_the_last_line_of_a_log(tmp_path):
  log = tmp_path / "log"
  log.write_text("port: expected\r1/9 [9.0s/round]\n2/9 [1round/s]\n\n")
  assert service.last_line(log) == "1/9 [9.0s/round]"


def test_the_newest_round_is_that_of_the_last_complete_line(tmp_path):
  file = tmp_path / "metrics.jsonl"
  assert newest_round(file) == -1
  file.write_text('{"round": 0}\n{"round": 12}\n{"round": 1')
  assert newest_round(file) == 12


def test_a_soak_ends_in_calm_that_is_long_enough_for_all_sites_to_come_back():
  assert calm_from(rounds=1000, seconds=0) == 0.9
  assert calm_from(rounds=100, seconds=0) == 0.7
  assert calm_from(rounds=0, seconds=3600) == 0.9
  assert calm_from(rounds=0, seconds=1000) == 0.8
  assert calm_from(rounds=0, seconds=60) == calm_from(rounds=3, seconds=0) == 0.5


USED = Usage("bonn", 1, 0.0, memory=100, threads=7, files=9)


@pytest.mark.parametrize(
  ("change", "found"),
  [
    ({"memory": 110}, []),
    ({"memory": 50, "threads": 5, "files": 3}, []),
    ({"memory": 10**9}, ["bonn: 0 to 1000 MB"]),
    ({"threads": 8}, ["bonn: 7 to 8 threads"]),
    ({"files": 10}, ["bonn: 9 to 10 files"]),
  ],
)
def test_what_a_process_has_more_at_the_end_is_found(change, found):
  early = [Sample(1.0, 1, [USED._replace(memory=9, threads=1, files=1)], {})]
  early.append(Sample(2.0, 2, [USED], {}))
  last = Sample(9.0, 9, [USED._replace(**change)], {})
  higher = USED._replace(memory=10**10, threads=99, files=99)  # for a moment
  late = [Sample(8.0, 8, [higher], {}), last, Sample(9.5, 9, [USED._replace(name="new")], {})]
  verdict = checks.nothing_grew(early, late)
  assert (verdict.found, verdict.passed) == (found, not found)


def test_samples_of_the_first_tenth_and_first_rounds_and_of_the_last_tenth():
  samples = [Sample(float(i), i // 10, [], {}) for i in range(1000)]
  assert early_samples(samples)[-1].round == 10
  assert early_samples(samples[:50]) == samples[:50]  # too short to have any other
  assert late_samples(samples) == samples[900:]


def test_files_that_a_run_should_not_leave_are_found(tmp_path):
  good = [
    "server.log",
    "server/keys/ca.key",
    "server/keys/sites/bonn.pub",
    "server/run/metrics.jsonl",
    "server/run/checkpoints/12/state/manifest.ocdbt",
    "bonn/keys/bonn.key",
    "bonn/run/clients/bonn/round_000012.safetensors",
    "bonn/run/supernode/bonn/log",
  ]
  bad = [
    "bonn/run/clients/bonn/round_000007.safetensors.tmp",
    "server/run/checkpoints/13.orbax-checkpoint-tmp/state/a",
    "server/run/metrics.jsonl.tmp",
  ]
  for path in (*good, *bad):
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text("x")
  for folder in ("server/run/empty", "tmp"):
    (tmp_path / folder).mkdir()
  found = files.unexpected(files.files_below(tmp_path))
  assert found == sorted([*bad, "server/run/empty"])
  assert disk_use(tmp_path) == {
    "logs": 1,
    "server/keys": 1,
    "server/keys/sites": 1,
    "server/run": 2,
    "server/run/checkpoints": 2,
    "sites/keys": 1,
    "sites/run/clients": 2,
    "sites/run/supernode": 1,
  }


def test_tracebacks_are_found_by_their_last_line(tmp_path):
  log = tmp_path / "server.log"
  log.write_text('a\nTraceback (most recent call last):\n  File "a"\n    b\nKeyError: 1\nc\n')
  assert files.tracebacks([log, tmp_path / "missing"]) == {"server.log": ["KeyError: 1"]}


def test_a_site_that_is_not_in_the_last_round_is_found():
  def line(round, client, status):
    return {"round": round, "client": client, "status": status}

  lines = [line(1, "bonn", "ok"), line(2, "aachen", "ok"), line(2, "bonn", "timeout: no reply")]
  verdict = checks.sites_came_back(SITES, lines)
  assert verdict.found == ["bonn is not"] and str(verdict).startswith("FAILED  all sites")


def test_a_report_counts_by_role_and_by_outcome(tmp_path):
  events = Events(tmp_path / "events.jsonl")
  for number in range(3):
    events.add("round", round=number)
  events.add("kill", process="bonn", stop=0.0)
  events.add("stop", process="bonn SuperNode", stop=3.0)
  events.add("exit", name="bonn", status=-9, said="")
  events.add("exit", name=SERVER, status=1, said="the SuperLink was lost")
  samples = [Sample(0.0, 0, [USED], {"a": 10**6}), Sample(60.0, 2, [USED], {"a": 3 * 10**6})]
  lines = [
    {"round": 1, "client": "bonn", "status": "failed: not connected"},
    {"round": 2, "client": "bonn", "status": "ok"},
  ]
  wrong = checks.Verdict("a check", ["this", "that"])
  report = make_report(5, tmp_path, events, samples, lines, [wrong])
  assert (report.rounds, report.seconds, report.passed) == (2, 60.0, False)
  assert report.disturbances == {"kill site": 1, "stop SuperNode": 1}
  assert [each["name"] for each in report.exits] == [SERVER]
  assert report.replies == {"failed": 1, "ok": 1}
  assert report.reasons == {"failed: not connected": 1}
  assert report.held == {"bonn": {"memory": [1e-4] * 2, "threads": [7, 7], "files": [9, 9]}}
  assert report.disk == {"a": [3.0, 3.0]}
  assert report.verdicts == [{"check": "a check", "found": ["this", "that"], "passed": False}]

"""A server and two sites, as their hosts' people start them: keys, three commands, TLS."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from afspl_jax import cli
from afspl_jax.federation.transport.connection import free_port
from tests.federation.transport.hosts import wait_for
from tests.launcher import ROUNDS

SITES = ("client0000", "client0001")
FIELDS = {
  "data.partition": "iid",
  "data.num_clients": 2,
  "fed.clients_per_round": 2,
  "fed.cohort": 1,  # a network's clients train alone: so must those that they are compared with
}


def proof(run: Path) -> str:
  """The hash of the last checkpoint's params."""
  file = run / "checkpoints" / str(ROUNDS) / "proof" / "metadata"
  return json.loads(file.read_text())["sha256"]


@pytest.fixture(scope="module")
def hosts(launcher):
  """What the server printed, each site's process after it was told to end, and the folder."""
  base = launcher.base / "hosts"
  server_keys = base / "server"
  assert cli.main(["keys", "server", "--folder", str(server_keys)]) == 0
  (server_keys / "sites").mkdir()
  for site in SITES:
    assert cli.main(["keys", "site", site, "--folder", str(base / site)]) == 0
    (base / site / "ca.crt").write_bytes((server_keys / "ca.crt").read_bytes())
    (server_keys / "sites" / f"{site}.pub").write_bytes((base / site / f"{site}.pub").read_bytes())
  fields = [*launcher.small, *(f"--config.{name}={value}" for name, value in FIELDS.items())]
  # First: what it compiles, the others need not compile all at once.
  whole = launcher.run(*fields, f"--workdir={base / 'whole'}")
  assert whole.returncode == 0, whole.stderr
  address = f"--superlink=127.0.0.1:{free_port()}"
  clients = [
    launcher.start(
      *fields,
      "--role=client",
      address,
      f"--site={site}",
      f"--keys={base / site}",
      f"--workdir={base / site / 'run'}",
    )
    for site in SITES
  ]
  try:
    server = launcher.run(
      *fields, "--role=server", address, f"--keys={server_keys}", f"--workdir={base / 'run'}"
    )
  finally:
    for client in clients:
      client.send_signal(signal.SIGTERM)
  return base, server, [launcher.ended(client) for client in clients]


def test_the_federation_runs_to_its_end_and_says_what_every_site_did(hosts):
  _, server, _ = hosts
  assert server.returncode == 0, server.stderr
  for site in SITES:
    assert f"{site}: here, " in server.stdout
    for round in range(1, ROUNDS + 1):
      assert f"round {round}  {site}  ok  " in server.stdout
  assert "test split, round 3: cider" in server.stdout


def test_the_params_are_those_of_one_process_to_the_last_bit(hosts):
  base, *_ = hosts
  assert proof(base / "run") == proof(base / "whole")


def test_a_sites_own_state_stays_in_its_own_folder(hosts):
  base, *_ = hosts
  for site in SITES:
    states = {path.parent.name for path in (base / site / "run").rglob("round_*.safetensors")}
    assert states == {site}
  assert not list((base / "run").rglob("*.safetensors"))


def test_a_site_that_is_told_to_end_does_so_in_good_order(hosts):
  for client in hosts[2]:
    assert client.returncode == 143 and "Traceback" not in client.stderr
    assert "its data and local prompt stay here" in client.stdout


def test_a_site_audits_what_left_it_and_it_is_what_the_server_got(hosts, capsys):
  base, *_ = hosts
  text = (base / "run" / "clients.jsonl").read_text()
  counted = [json.loads(line) for line in text.splitlines()]
  for site in SITES:
    assert cli.main(["audit", str(base / site / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["closed"] and [line["client"] for line in found["clients"]] == [site]
    (trained,) = [line for line in found["names"] if line["where"] == ["train"]]
    got = [line["bytes_up"] for line in counted if line["client"] == site]
    assert (trained["messages"], trained["bytes"]) == (len(got), sum(got))
  assert cli.main(["audit", str(base / "run")]) == 2  # the server notes nothing
  assert "or a site's own" in capsys.readouterr().err


def test_status_tells_of_the_federation(hosts, capsys):
  base, *_ = hosts
  assert cli.main(["status", str(base / "run")]) == 0
  out = capsys.readouterr().out
  assert out.startswith(f"finished: round {ROUNDS} of {ROUNDS}, ") and SITES[1] in out


@pytest.mark.slow
def test_a_superlink_that_stands_still_for_75_seconds_costs_no_round(hosts, launcher):
  """The SuperLink ends a run that it has not heard of for a minute: a new one goes on."""
  base, *_ = hosts
  fields = [*launcher.small, *(f"--config.{name}={value}" for name, value in FIELDS.items())]
  folder = base / "stopped"
  server = launcher.start(*fields, "--role=local-net", f"--workdir={folder}")
  lines = folder / "clients.jsonl"
  wait_for(lambda: server.poll() is not None or (lines.exists() and lines.stat().st_size), "round")
  (superlink,) = (
    int(path.parent.name)
    for path in Path("/proc").glob("[0-9]*/cmdline")
    if b"access_control" in (text := path.read_bytes()) and str(folder).encode() in text
  )
  os.kill(superlink, signal.SIGSTOP)
  time.sleep(75)
  os.kill(superlink, signal.SIGCONT)
  done = launcher.ended(server)
  assert done.returncode == 0, done.stderr
  assert proof(folder) == proof(base / "whole")


def test_a_rehearsal_ends_at_once_if_the_process_of_its_sites_does(launcher, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run" / "sites").write_text("no folder")
  done = launcher.run(*launcher.small, "--role=local-net", f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
  assert "sites: " in done.stderr and str(tmp_path / "run" / "sites") in done.stderr
  last = done.stderr.strip().splitlines()[-1]
  assert "sites: expected their process to run until the end; it ended with status 1." in last


def mistake(launcher, *args: str) -> str:
  """The one line of a command that ends with status 2."""
  done: subprocess.CompletedProcess = launcher.run_here(*args)
  assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
  return done.stderr


def test_a_server_without_keys_or_sites_says_how_to_make_them(launcher, tmp_path):
  assert "nothing/ca.crt: expected" in (said := server_mistake(launcher, tmp_path / "nothing"))
  assert "`afspl keys` makes keys" in said
  assert cli.main(["keys", "server", "--folder", str(tmp_path)]) == 0
  said = server_mistake(launcher, tmp_path)
  assert "sites: expected the public keys of the sites" in said and "afspl keys site NAME" in said


def server_mistake(launcher, keys: Path) -> str:
  return mistake(launcher, *launcher.small, "--role=server", f"--keys={keys}")


SECURE = ("--config.secure.aggregation=true", "--config.uplink.select=shared")


def test_a_sites_own_key_must_be_in_the_roster_that_it_is_given(launcher, tmp_path, capsys):
  keys, roster = tmp_path / "keys", tmp_path / "keys" / "roster.pub"
  for site in SITES:
    assert cli.main(["keys", "site", site, "--folder", str(keys)]) == 0
  client = [*launcher.small, "--role=client", "--superlink=127.0.0.1:1", f"--site={SITES[0]}"]
  client += [f"--keys={keys}", f"--roster={roster}", f"--workdir={tmp_path / 'run'}"]
  assert "--roster: expected with --config.secure.aggregation" in mistake(launcher, *client)
  assert "roster.pub: expected a roster; got" in mistake(launcher, *client, *SECURE)
  others = [str(keys / f"{site}.pub") for site in SITES[1:]]
  assert cli.main(["keys", "roster", "--folder", str(keys), *others]) == 0
  assert f"{roster}: {', '.join(SITES[1:])}. Give every site a copy" in capsys.readouterr().out
  said = mistake(launcher, *client, *SECURE)
  assert (
    f"roster.pub: expected the public key of {keys / SITES[0]}.key for {SITES[0]}; got none" in said
  )

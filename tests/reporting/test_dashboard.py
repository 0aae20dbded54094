"""The dashboard: its responses, its allowed hosts, and the files that it reads."""

import http.client
import json
import re
import shutil
import signal
import subprocess
import sys
from unittest.mock import Mock

import pytest
from starlette.testclient import TestClient

from afspl_jax import cli
from afspl_jax.reporting import dashboard
from afspl_jax.storage.run_folder import RunFolder
from tests.reporting.html.made_run import MALICIOUS, made_run


@pytest.fixture
def client(tmp_path, monkeypatch):
  monkeypatch.setattr(dashboard, "_REST", 0.0)
  app = dashboard.make_app(tmp_path / "run", images=False)
  return TestClient(app, base_url="http://127.0.0.1:8050")


def state(client):
  return re.search(r"<strong>([a-z ]+)</strong>(, round \d+ of \d+)?", client.get("/").text)[0]


def test_a_run_from_before_its_start_to_its_end(client, tmp_path):
  path = tmp_path / "run"
  assert "not started" in state(client)
  with RunFolder.open(path, json.loads((whole(tmp_path) / "config.json").read_text())["config"]):
    assert state(client) == "<strong>running</strong>, round 0 of 4"
    lines = (whole(tmp_path) / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:3]))
    assert state(client) == "<strong>running</strong>, round 2 of 4"
    (path / "metrics.jsonl").write_text("".join(lines[:3]) + lines[3][:9])
    assert state(client) == "<strong>running</strong>, round 2 of 4"
  assert state(client) == "<strong>stopped</strong>, round 2 of 4"
  (path / "metrics.jsonl").write_text("".join(lines))
  assert state(client) == "<strong>finished</strong>, round 4 of 4"


def whole(folder):
  path = folder / "whole"
  return path if path.exists() else made_run(path)


def test_a_page_that_did_not_change_is_not_sent_again(client, tmp_path):
  made_run(tmp_path / "run", finished=False)
  first = client.get("/")
  same = client.get("/", headers={"If-None-Match": first.headers["etag"]})
  assert (same.status_code, same.content) == (304, b"")
  with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
    file.write(json.dumps({"round": 4, "split": "test", "cider": 2.0}) + "\n")
  changed = client.get("/", headers={"If-None-Match": first.headers["etag"]})
  assert changed.status_code == 200 and "2.000" in changed.text


def test_files_that_did_not_change_are_not_read_again(client, tmp_path, monkeypatch):
  made_run(tmp_path / "run")
  reads, read_run = [], dashboard.read_run
  monkeypatch.setattr(
    dashboard, "read_run", lambda folder: reads.append(folder) or read_run(folder)
  )
  for _ in range(3):
    assert client.get("/").status_code == 200
  assert len(reads) == 1


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8050", "127.0.0.1.evil.example"])
def test_a_foreign_host_name_is_rejected(client, host):
  for path in ("/", "/live.js"):
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 400 and "html" not in answer.headers["content-type"]


def test_given_and_local_host_names_are_accepted(tmp_path):
  client = TestClient(dashboard.make_app(tmp_path, ["lab.example", "GPU1"], images=False))
  for host in ("localhost", "127.0.0.1:8050", "lab.example", "lab.example:80", "gpu1:8050"):
    assert client.get("/", headers={"Host": host}).status_code == 200


def test_no_other_origin_may_read_and_nobody_may_write(client, tmp_path):
  made_run(tmp_path / "run", name=MALICIOUS)
  answer = client.get("/", headers={"Origin": "http://evil.example"})
  assert not [name for name in answer.headers if name.startswith("access-control")]
  policy = answer.headers["content-security-policy"]
  assert "default-src 'none'" in policy and "script-src 'self'" in policy
  assert "unsafe-inline'" not in policy.replace("style-src 'unsafe-inline'", "")
  assert re.findall(r"<script[^>]*>", answer.text) == ['<script src="/live.js" defer>']
  for method in ("POST", "PUT", "DELETE", "PATCH"):
    assert client.request(method, "/").status_code == 405
  for path in ("/config.json", "/../config.json", "/%2e%2e/config.json", "/clients.jsonl"):
    assert client.get(path).status_code == 404
  assert "follow" in client.get("/live.js").text


def test_it_writes_nothing_into_the_folder(client, tmp_path):
  run = made_run(tmp_path / "run")
  before = {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]}
  assert client.get("/").status_code == 200
  assert {path: path.stat().st_mtime_ns for path in [run, *run.rglob("*")]} == before


def test_a_damaged_file_is_reported_and_a_repaired_one_is_read(client, tmp_path):
  run = made_run(tmp_path / "run")
  shutil.copy(run / "metrics.jsonl", tmp_path / "kept")
  (run / "metrics.jsonl").write_text("{\n")
  answer = client.get("/")
  assert answer.status_code == 500 and "metrics.jsonl:1: expected a JSON object" in answer.text
  shutil.copy(tmp_path / "kept", run / "metrics.jsonl")
  assert client.get("/").status_code == 200


def test_an_unavailable_address_is_reported(tmp_path, capsys):
  assert cli.main(["dashboard", str(tmp_path), "--host=203.0.113.1"]) == 2
  error = capsys.readouterr().err
  assert "203.0.113.1:8050: expected an address that is free" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["", "*", "*.example", "a*b", "lab.example:8050", "::1"])
def test_a_wildcard_or_invalid_name_is_rejected(tmp_path, capsys, name):
  assert cli.main(["dashboard", str(tmp_path), "--port=0", f"--name={name}"]) == 2
  error = capsys.readouterr().err
  assert f"without port or wildcard; got {name!r}" in error and error.count("\n") == 1


@pytest.mark.parametrize("names, has_hint", [([], True), (["lab.example"], False)])
def test_listening_on_all_addresses_without_a_name_prints_a_hint(
  tmp_path, capsys, monkeypatch, names, has_hint
):
  monkeypatch.setattr(dashboard, "uvicorn", Mock())
  monkeypatch.setattr(dashboard.os, "nice", lambda by: None)
  dashboard.serve_dashboard(tmp_path, "0.0.0.0", 0, names)
  assert ("--name" in capsys.readouterr().out) == has_hint


def test_ctrl_c_ends_it_silently(tmp_path):
  command = [sys.executable, "-m", "afspl_jax.cli", "dashboard", str(tmp_path), "--port=0"]
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  ) as process:
    try:
      address = re.search(r"http://(\S+)/", process.stdout.readline())[1]
      connection = http.client.HTTPConnection(address, timeout=600)
      connection.request("GET", "/")
      assert connection.getresponse().status == 200
      connection.close()
      process.send_signal(signal.SIGINT)
      assert process.communicate(timeout=600) == ("", "") and process.returncode == 0
    finally:
      process.kill()

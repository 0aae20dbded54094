"""Pages in a real browser: light, dark, on a phone, by keyboard, under axe-core.

Skipped without Chromium, Node and two packages: `npm install playwright-core axe-core` in any
folder, and NODE_PATH=FOLDER/node_modules.
"""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from afspl_jax.reporting.html.files import read_run, read_runs
from afspl_jax.reporting.html.page import render_page
from tests.reporting.html.made_run import MALICIOUS, made_run

LOOK = Path(__file__).parent / "look.js"


@pytest.fixture(scope="module")
def look():
  """Gives what look.js found at an address."""
  browser, node = shutil.which("chromium"), shutil.which("node")
  if not (browser and node):
    pytest.skip("needs chromium and node")
  packages = 'require.resolve("playwright-core"); require.resolve("axe-core")'
  if subprocess.run([node, "-e", packages], capture_output=True).returncode:
    pytest.skip("needs playwright-core and axe-core of npm, on NODE_PATH")

  def run(url):
    done = subprocess.run([node, LOOK, url, browser], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])

  return run


def malicious(folder):
  return [read_run(made_run(folder / "malicious", clients=40, name=MALICIOUS))]


def several(folder):
  return read_runs([made_run(folder / name, clients=3, rounds=2) for name in "ab"])


@pytest.mark.parametrize("make", [malicious, several])
def test_everyone_can_read_the_page(tmp_path, look, make):
  file = tmp_path / "report.html"
  file.write_text(render_page(make(tmp_path), images=False))
  found = look(file.as_uri())
  keyboard = found.pop("keyboard")
  assert keyboard["unseen"] == 0 and keyboard["reached"] >= keyboard["wanted"] > 8
  assert set(found) == {"light", "dark", "phone"}
  for view, seen in found.items():
    assert seen["violations"] == [], view
    assert seen["passes"] > 20
    assert (seen["requests"], seen["errors"], seen["overflow"]) == ([], [], 0), view
    assert not seen["executed"]

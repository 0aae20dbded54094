"""No file that is read, and no message, becomes code: by what the package never calls."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "afspl_jax"
FILES = sorted(ROOT.rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "yaml"}
# A config is Python by design: the file that the user names is run.
BY_DESIGN = {"config/files.py": {"exec", "compile"}}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {"torch.load", "os.system", "os.popen", "pandas.read_pickle", "numpy.loadtxt"}
TRUE = {"allow_pickle", "shell", "trust_remote_code"}  # arguments that stay False


def faults(source: str) -> list[str]:
  """What of a module could run data, by line."""
  out, names = [], {}
  for node in ast.walk(ast.parse(source)):
    found = []
    if isinstance(node, ast.Import):
      found = [alias.name for alias in node.names]
      names |= {alias.asname or alias.name: alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      found = [node.module or ""]
      names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    out += [f"{node.lineno}: {name}" for name in found if name.split(".")[0] in MODULES]
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Call):
      name, _, rest = ast.unparse(node.func).partition(".")
      called = ".".join([names.get(name, name), *([rest] if rest else [])])
      if called in BUILTINS or called in CALLS:
        out.append(f"{node.lineno}: {called}")
      for given in node.keywords:
        off = isinstance(given.value, ast.Constant) and given.value.value is False
        if given.arg in TRUE and not off:
          out.append(f"{node.lineno}: {given.arg}")
  return out


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_that_is_read_can_run(file):
  found = faults(file.read_text(encoding="utf-8"))
  known = BY_DESIGN.get(str(file.relative_to(ROOT)), set())
  assert {fault.split(": ")[1] for fault in found} == known, found


@pytest.mark.parametrize(
  "source",
  [
    "import pickle",
    "from yaml import load",
    "import joblib.numpy_pickle",
    "eval('1')",
    "exec(x)",
    "import torch\ntorch.load(f)",
    "from torch import load\nload(f)",
    "import numpy as np\nnp.load(f, allow_pickle=True)",
    "np.load(f, allow_pickle=flag)",
    "import subprocess\nsubprocess.run('ls', shell=True)",
    "AutoTokenizer.from_pretrained(folder, trust_remote_code=True)",
  ],
)
def test_what_could_run_is_found(source):
  assert faults(source)


def test_what_cannot_is_not():
  fine = "import json, re, numpy as np\nre.compile('a')\nnp.load(f, allow_pickle=False)\nx.eval()"
  assert faults(fine) == []

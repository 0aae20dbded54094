"""Flower's private names are in one module of the package, and all of them exist."""

import ast
from pathlib import Path

import pytest
from flwr.common.constant import ErrorCode

from afspl_jax.federation.contracts import CLIENT_RAISED
from afspl_jax.federation.transport import flower_private

PACKAGE = Path(__file__).parents[3] / "afspl_jax"
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")


def private_imports(text):
  """Modules of Flower that a source imports, by statement or by text, and that are private."""
  out = set()
  for node in ast.walk(ast.parse(text)):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and not node.level:
      names = [node.module]
      if node.module == "flwr":  # `from flwr import app`
        names = [f"flwr.{alias.name}" for alias in node.names]
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
      names = [node.value] if node.value.replace(".", "").isidentifier() else []
    out |= {name for name in names if name.split(".")[0] == "flwr" and name not in PUBLIC}
  return out - {"flwr"}  # the name of the distribution


def test_no_other_module_of_the_package_imports_a_private_name():
  files = {path for path in PACKAGE.rglob("*.py") if private_imports(path.read_text())}
  assert files == {Path(flower_private.__file__)}


@pytest.mark.parametrize(
  "source",
  [
    "from flwr.common.constant import ErrorCode",
    "import flwr.common.constant as constants",
    "from flwr import common",
    "from flwr.app.error import Error",
    "importlib.import_module('flwr.common.constant')",
  ],
)
def test_a_private_import_is_seen(source):
  assert private_imports(source)


@pytest.mark.parametrize("source", ["from flwr.app import Error", "from flwr import app", "'flwr'"])
def test_a_public_import_is_allowed(source):
  assert not private_imports(source)


@pytest.mark.parametrize("name", flower_private._MODULES)
def test_the_installed_flower_has_every_private_name(name):
  assert getattr(flower_private, name) is not None


def test_an_unknown_name_is_an_attribute_error():
  with pytest.raises(AttributeError, match="no attribute 'ServerApp'"):
    flower_private.ServerApp  # noqa: B018


def test_the_error_code_of_the_contract_is_flowers():
  assert CLIENT_RAISED == ErrorCode.CLIENT_APP_RAISED_EXCEPTION

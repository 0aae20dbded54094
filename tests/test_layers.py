"""A module imports lower layers or its own folder, never upward (BUILD.md, "Layers")."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "afspl_jax"

# The longest matching prefix gives a module its layer. Modules of one layer and one folder may
# import each other; a folder that is cut into two layers names its upper files.
LAYERS = {
  "errors": 0,
  "atomic": 0,
  "config": 0,
  "fields": 0,
  "forms": 0,
  "json_text": 0,
  "study": 0,
  "text_table": 0,
  "types": 0,
  "metrics": 0,
  "backbones": 1,
  "data": 1,
  "data.features": 2,  # where the data first meets a backbone
  "data.batches": 2,
  "privacy": 1,
  "prompts": 2,
  "captioner": 3,
  "losses": 4,
  "row_loss": 4,
  "control": 4,
  "step": 4,
  "dpsgd": 4,
  "beam": 4,
  "decode": 4,
  "checkpoint": 4,
  "run_folder": 4,
  "frozen": 4,
  "java_scores": 1,
  "evaluate": 5,
  "measures": 6,
  "federation": 6,
  "checks": 7,
  "prepare": 7,
  "setup": 7,
  "final": 7,
  "status": 7,
  "audit": 7,
  "audit_table": 7,
  "preview": 7,
  "tensorboard": 7,
  "run": 7,
  "finished": 7,
  "prompter_file": 7,
  "trained": 8,
  "model": 8,
  "rescore": 8,
  "score_table": 8,
  "use_cli": 8,
  "": 9,  # the package's own `load`
  "flags": 7,
  "pretrain": 7,
  "network": 8,
  "report": 8,
  "flower_app": 9,
  "dashboard": 9,
  "workers": 8,
  "columns": 8,
  "tables": 8,
  "plots": 8,
  "ablate": 8,
  "cli": 9,
}


def unit(module: str) -> str | None:
  """The entry of LAYERS that covers a module, or None."""
  parts = module.split(".")
  prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
  return next((prefix for prefix in prefixes if prefix in LAYERS), None)


def folder(module: str) -> str:
  """The package's folder that a module is in; "" for the package's own."""
  top = module.split(".")[0]
  return top if (ROOT / PACKAGE / top).is_dir() else ""


def modules(package: Path) -> dict[str, Path]:
  """Every module below `package`, by its name without the package's; "" is the package."""
  out = {}
  for path in sorted(package.rglob("*.py")):
    parts = path.relative_to(package).with_suffix("").parts
    out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return out


def imports(text: str, module: str, known: set[str], is_package: bool) -> set[str]:
  """Modules of the package that `text` imports, at any depth of its code."""
  out = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        here = [PACKAGE, *module.split(".")] if module else [PACKAGE]
        here = here[: len(here) - node.level + is_package]
        base = ".".join([*here, base] if base else here)
      names = [f"{base}.{alias.name}" for alias in node.names]
    else:
      continue
    for name in names:
      if name.split(".")[0] != PACKAGE:
        continue
      name = name.removeprefix(PACKAGE).removeprefix(".")
      # `from package.module import name`: name may be a module of its own or not.
      out.add(name if name in known else name.rpartition(".")[0])
  return out - {module}


def violations(package: Path) -> list[str]:
  """What is wrong with the imports below `package`, and modules that LAYERS does not cover."""
  found = modules(package)
  out = []
  for module, path in found.items():
    if path.name == "__init__.py" and not path.read_text().strip():
      continue
    own = unit(module)
    if own is None:
      out.append(f"{module or PACKAGE}: no layer")
      continue
    is_package = path.name == "__init__.py"
    for target in sorted(imports(path.read_text(), module, set(found), is_package)):
      other = unit(target)
      if other is None:
        out.append(f"{module} imports {target}, which has no layer")
      elif (LAYERS[other], folder(target)) != (LAYERS[own], folder(module)) and (
        LAYERS[other] >= LAYERS[own]
      ):
        out.append(f"{module} ({LAYERS[own]}) imports {target} ({LAYERS[other]})")
  return out


def test_no_module_imports_upward():
  assert violations(ROOT / PACKAGE) == []


def test_every_layer_in_the_table_exists():
  found = modules(ROOT / PACKAGE)
  assert set(LAYERS) <= set(found)


@pytest.mark.parametrize(
  "module, text, complaint",
  [
    ("step", "from afspl_jax import evaluate", "step (4) imports evaluate (5)"),
    ("step", "def f():\n  import afspl_jax.run", "step (4) imports run (7)"),
    ("step", "if False:\n  from afspl_jax.run import x", "step (4) imports run (7)"),
    ("data.coco", "from .features import F", "data.coco (1) imports data.features (2)"),
    ("data.coco", "from ..captioner import F", "data.coco (1) imports captioner (3)"),
    ("data.coco", "from afspl_jax.backbones import t5", "data.coco (1) imports backbones.t5 (1)"),
    ("backbones.t5", "import afspl_jax.data.coco", "backbones.t5 (1) imports data.coco (1)"),
    ("helpers", "", "helpers: no layer"),
    ("data", "from afspl_jax import captioner", "data (1) imports captioner (3)"),
  ],
)
def test_a_violation_is_seen_wherever_it_hides(tmp_path, module, text, complaint):
  for name in (
    "data.features",
    "data.coco",
    "captioner",
    "backbones.t5",
    "evaluate",
    "run",
    "step",
  ):
    path = tmp_path / Path(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
  path = tmp_path / Path(*module.split("."))
  path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
  path.write_text(text + "\nx = 1\n")
  assert violations(tmp_path) == [complaint]


def test_one_layer_of_one_folder_may_import_itself(tmp_path):
  (tmp_path / "step.py").write_text("from afspl_jax.losses import f\nimport jax\n")
  (tmp_path / "losses.py").write_text("from afspl_jax import config\n")
  (tmp_path / "config.py").write_text("")
  assert violations(tmp_path) == []

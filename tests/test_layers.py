"""The packages import each other as BUILD.md's table says ("Layout"), and nothing else."""

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "afspl_jax"

Table = dict[str, tuple[str, ...]]  # packages that each may import, in the table's order


def read_table(markdown: str, heading: str) -> Table:
  """The table below a heading: package in the first column, what it may import in the last."""
  _, _, text = markdown.partition(heading)
  rows = re.findall(r"^\| `([\w.]+)/?` \|.*\| ([^|]*) \|$", text.split("\n## ")[0], flags=re.M)
  return {name: tuple(re.findall(r"`(\w+)`", imports)) for name, imports in rows}


def modules(package: Path) -> dict[str, Path]:
  """Every module below `package`, by its name without the package's; "" is the package."""
  out = {}
  for path in sorted(package.rglob("*.py")):
    parts = path.relative_to(package).with_suffix("").parts
    out[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return out


def imports(text: str, module: str, known: set[str], is_package: bool, deep: bool) -> set[str]:
  """Modules of the package that `text` imports; with `deep` also inside of functions."""
  out = set()
  tree = ast.parse(text)
  for node in ast.walk(tree) if deep else tree.body:
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


def graph(package: Path, deep: bool) -> dict[str, set[str]]:
  """What every module imports."""
  found = modules(package)
  return {
    name: imports(path.read_text(), name, set(found), path.name == "__init__.py", deep)
    for name, path in found.items()
  }


def violations(package: Path, table: Table, inside: dict[str, tuple[str, ...]]) -> list[str]:
  """Imports that the tables do not allow.

  Args:
    package: folder of the package.
    table: what each package below it may import besides `errors` and `types`.
    inside: of some packages, the order of their parts: a part may import those before it.
  """
  out = []
  for module, targets in graph(package, deep=True).items():
    home, _, rest = module.partition(".")
    if home not in table:  # the modules beside the packages may import everything
      continue
    for target in sorted(targets):
      other, _, part = target.partition(".")
      if other == home:
        order = inside.get(home, ())
        own, its = rest.split(".")[0], part.split(".")[0]
        wrong = own in order and its in order and order.index(its) > order.index(own)
      else:
        wrong = other not in (*table[home], "errors", "types")
      if wrong:
        out.append(f"{module} imports {target}")
  return out


@functools.cache
def build_md() -> str:
  return (ROOT / "BUILD.md").read_text()


def table() -> Table:
  return read_table(build_md(), "## Layout")


def inside() -> dict[str, tuple[str, ...]]:
  order = re.search(r"Inside `federation/`: ([^.]*)\.", build_md())
  assert order is not None, "BUILD.md gives the order inside federation/"
  return {"federation": tuple(re.findall(r"`(\w+)`", order[1]))}


def floors(edges: dict[str, set[str]]) -> int:
  """Modules on the longest chain of imports."""

  @functools.cache
  def depth(name: str) -> int:
    return 1 + max((depth(other) for other in edges.get(name, ())), default=0)

  return max(map(depth, edges))


def reached(edges: dict[str, set[str]], start: str) -> set[str]:
  """Modules that are imported when one is."""
  out, left = set(), [start]
  while left:
    name = left.pop()
    if name not in out:
      out.add(name)
      left += edges.get(name, ())
  return out


def test_packages_import_only_what_the_table_allows():
  assert violations(ROOT / PACKAGE, table(), inside()) == []


def test_the_table_lists_every_package_in_an_order_without_cycles():
  folders = {path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").exists()}
  assert set(table()) == folders
  before: set[str] = set()
  for package, allowed in table().items():
    assert set(allowed) <= before, package
    before.add(package)


def test_the_order_inside_the_federation_names_every_part():
  parts = {p.stem for p in (ROOT / PACKAGE / "federation").iterdir() if not p.name.startswith("_")}
  assert set(inside()["federation"]) == parts


def test_the_package_graph_is_drawn(capsys):
  edges = graph(ROOT / PACKAGE, deep=False)
  lines = []
  for package in table():
    mine = [name for name in edges if name.split(".")[0] == package]
    used = {target.split(".")[0] for name in mine for target in edges[name]} - {package}
    used = [other for other in table() if other in used]
    lines.append(f"  {package:<11} {len(mine):>3} modules -> {', '.join(used) or '-'}")
  packages = {
    package: {t.split(".")[0] for n in edges if n.split(".")[0] == package for t in edges[n]}
    & set(table()) - {package}
    for package in table()
  }
  launch = reached(edges, "runs.run")
  with capsys.disabled():
    print("\n" + "\n".join(lines))
    print(f"  floors: {floors(packages)} of packages, {floors(edges)} of modules")
    print(f"  a launch imports {len(launch)} modules of {len(edges)}")
  assert floors(packages) <= len(table())


@pytest.mark.parametrize(
  "module, text, complaint",
  [
    ("models.t5", "from afspl_jax.runs import run", "models.t5 imports runs.run"),
    ("models.t5", "def f():\n  import afspl_jax.runs.run", "models.t5 imports runs.run"),
    ("models.t5", "if False:\n  from afspl_jax.runs.run import x", "models.t5 imports runs.run"),
    ("models.t5", "from ..runs.run import F", "models.t5 imports runs.run"),
    ("models.t5", "from afspl_jax import cli", "models.t5 imports cli"),
    ("runs.parts.low", "from ..high import x", "runs.parts.low imports runs.high"),
  ],
)
def test_a_violation_is_seen_wherever_it_hides(tmp_path, module, text, complaint):
  for name in ("models.t5", "runs.run", "runs.high", "runs.parts.low", "cli"):
    path = tmp_path / Path(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("")
  (tmp_path / Path(*module.split("."))).with_suffix(".py").write_text(text + "\nx = 1\n")
  order = {"runs": ("parts", "high")}
  assert violations(tmp_path, {"models": (), "runs": ("models",)}, order) == [complaint]


def test_a_package_may_import_itself_and_what_stands_before_it(tmp_path):
  for name, text in {
    "models/a.py": "import jax\n",
    "runs/b.py": "from afspl_jax.models.a import f\nfrom afspl_jax.errors import e\n",
    "runs/c.py": "from afspl_jax.runs import b\n",
    "errors.py": "",
  }.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  assert violations(tmp_path, {"models": (), "runs": ("models",)}, {}) == []

"""Pages for users say what the program does: the errors they quote, the files they link to."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("RESOURCE_EXHAUSTED", "CERTIFICATE_VERIFY_FAILED")  # errors of JAX and of TLS
# Parts of a quoted error that differ from case to case, and words that every error has.
_PLACEHOLDER = (
  r"[A-Z]{2,}\b|\b[A-Z]\b|\.\.\.|'\w'|\b\d[\d.]*\b"
  r"|\bexpected\b|; got\b|\b(?:timeout|failed): "
)


def texts_of_package() -> str:
  """Every text in the package's code; what an f-string fills in is a space."""
  out = []
  for path in (ROOT / "afspl_jax").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.JoinedStr):
        parts = node.values
        out.append("".join(p.value if isinstance(p, ast.Constant) else " " for p in parts))
      elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        out.append(node.value)
  return "\n".join(out)


def quoted_errors() -> list[str]:
  """The errors that docs/troubleshooting.md explains."""
  page = (ROOT / "docs" / "troubleshooting.md").read_text()
  return [error for error in re.findall(r"\*\*`([^`]+)`\*\*", page) if error not in OTHERS]


def test_the_troubleshooting_page_quotes_errors_of_the_package():
  texts = texts_of_package()
  assert len(quoted_errors()) >= 20
  for error in quoted_errors():
    if not error.startswith(OTHERS):
      fragment = max(re.split(_PLACEHOLDER, error), key=len).strip(" :;`")
      assert fragment in texts, f"{error}: no error has {fragment!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page):
  for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
    if "://" not in target:
      file, _, anchor = target.partition("#")
      linked = page if not file else page.parent / file
      assert linked.exists(), target
      if anchor:
        headings = re.findall(r"^#+ (.+)$", linked.read_text(), flags=re.M)
        slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert anchor in slugs, target

"""METEOR and SPICE, by the COCO evaluator's own Java programs where they are installed.

Nothing is downloaded: `pip install 'afspl-jax[java]'` brings METEOR; SPICE also needs Stanford's
parser, which pycocoevalcap would fetch when it is first asked, and which this asks for instead.
"""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from afspl_jax.errors import UserError
from afspl_jax.evaluation.metrics.ptb import tokenize

_PACKAGE = "pycocoevalcap"
_PARSER = "stanford-corenlp-3.6.0"
_PARSER_ZIP = "Stanford's stanford-corenlp-full-2015-12-09.zip"


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """METEOR 1.5 of a set (Denkowski & Lavie 2014), from summed statistics; between 0 and 1.

  Raises:
    UserError: Java or pycocoevalcap is not installed.
  """
  check("meteor")
  from pycocoevalcap.meteor.meteor import Meteor

  return float(Meteor().compute_score(*_numbered(predictions, references))[0])


def spice(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float64[np.ndarray, " items"]:
  """SPICE of each item (Anderson et al. 2016), between 0 and 1; that of a set is the mean.

  Raises:
    UserError: Java, pycocoevalcap or Stanford's parser is not installed.
  """
  check("spice")
  from pycocoevalcap.spice.spice import Spice

  _, items = Spice().compute_score(*_numbered(predictions, references))
  return np.array([item["All"]["f"] for item in items], np.float64)


def check(score: str) -> None:
  """Looks for all that "meteor" or "spice" needs.

  Raises:
    UserError: naming what is missing.
  """
  found = importlib.util.find_spec(_PACKAGE)
  missing = [] if found else [f"{_PACKAGE} (pip install 'afspl-jax[java]')"]
  if shutil.which("java") is None:
    missing.append("java (a Java runtime, such as OpenJDK)")
  # Of a package without __init__.py there is no origin, but a place.
  for place in found.submodule_search_locations or () if found and score == "spice" else ():
    library = Path(place) / "spice" / "lib"
    parser = [library / f"{_PARSER}{end}.jar" for end in ("", "-models")]
    missing += [f"{file} (of {_PARSER_ZIP})" for file in parser if not file.is_file()]
  if missing:
    raise UserError(f"{score}: expected to be installed: {', '.join(missing)}; got none")


def _numbered(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
  """References and predictions in PTB's tokens, as the evaluator hands them on."""
  human = {i: [" ".join(tokenize(t)) for t in group] for i, group in enumerate(references)}
  return human, {i: [" ".join(tokenize(text))] for i, text in enumerate(predictions)}

"""METEOR and SPICE, computed by the Java programs of the COCO evaluator if they are installed.

Nothing is downloaded. `pip install 'afspl-jax[java]'` installs METEOR. SPICE also needs Stanford's
parser: pycocoevalcap would download it at the first use; this module reports that it is missing.
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
  """METEOR 1.5 of a set (Denkowski & Lavie 2014) from summed statistics, between 0 and 1.

  Raises:
    UserError: Java or pycocoevalcap is not installed.
  """
  require_java_metric("meteor")
  from pycocoevalcap.meteor.meteor import Meteor

  return float(Meteor().compute_score(*_numbered(predictions, references))[0])


def spice(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> Float64[np.ndarray, " items"]:
  """SPICE of each item (Anderson et al. 2016), between 0 and 1; the score of a set is the mean.

  Raises:
    UserError: Java, pycocoevalcap or Stanford's parser is not installed.
  """
  require_java_metric("spice")
  from pycocoevalcap.spice.spice import Spice

  _, items = Spice().compute_score(*_numbered(predictions, references))
  return np.array([item["All"]["f"] for item in items], np.float64)


def require_java_metric(name: str) -> None:
  """Checks that everything that "meteor" or "spice" needs is installed.

  Raises:
    UserError: something is missing; the message names all of it.
  """
  found = importlib.util.find_spec(_PACKAGE)
  missing = [] if found else [f"{_PACKAGE} (pip install 'afspl-jax[java]')"]
  if shutil.which("java") is None:
    missing.append("java (a Java runtime, such as OpenJDK)")
  # A package without __init__.py has no origin, but it has a location.
  for location in found.submodule_search_locations or () if found and name == "spice" else ():
    library = Path(location) / "spice" / "lib"
    parser = [library / f"{_PARSER}{end}.jar" for end in ("", "-models")]
    missing += [f"{file} (of {_PARSER_ZIP})" for file in parser if not file.is_file()]
  if missing:
    raise UserError(
      f"{name}: expected these programs: {', '.join(missing)}; got none. Install them"
    )


def _numbered(
  predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
  """References and predictions as PTB tokens, in the form that the evaluator takes."""
  human = {i: [" ".join(tokenize(t)) for t in group] for i, group in enumerate(references)}
  return human, {i: [" ".join(tokenize(text))] for i, text in enumerate(predictions)}

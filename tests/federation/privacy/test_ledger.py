"""A ledger reads what it wrote; any other file is rejected."""

import pytest

from afspl_jax.errors import UserError
from afspl_jax.federation.privacy.ledger import Ledger


def test_a_ledger_that_is_none_is_rejected_by_name(tmp_path):
  for text in ("", "[]", '{"releases": -1, "took_part": {}}', '{"releases": 1, "took_part": [2]}'):
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(UserError, match=r"ledger.json: expected the count of releases"):
      Ledger(tmp_path / "ledger.json")

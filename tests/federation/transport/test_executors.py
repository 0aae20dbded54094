from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from flwr.clientapp import ClientApp
from flwr.supercore.runtime import RuntimeHttpClient

from afspl_jax.errors import UserError
from afspl_jax.federation.transport import executors


class FullDiskApp(ClientApp):
  """The app of a site whose disk is full."""

  def __call__(self, message, context):
    raise UserError("wire.jsonl: no space left")


def test_a_message_is_not_answered_if_the_site_cannot_log_it(monkeypatch):
  task = SimpleNamespace(), SimpleNamespace(node_id=1), None, None
  monkeypatch.setattr(executors, "pull_task_input", lambda client: task)
  for name in ("push_message", "push_task_output"):
    monkeypatch.setattr(executors, name, lambda *_: pytest.fail("something left"))
  with pytest.raises(UserError, match="no space left"):
    executors.execute_task(FullDiskApp(), MagicMock(spec=RuntimeHttpClient))

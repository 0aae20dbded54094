import pytest

from afspl_jax.storage.client_status import Outcome, Status, parse_status


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("reason", ["no reply within 9 s", "loss: expected a number: 3", ""])
def test_a_status_is_parsed_from_its_text(outcome, reason):
  status = Status(outcome, reason)
  assert parse_status(str(status)) == status


def test_ok_has_no_reason():
  assert str(Status(Outcome.OK)) == "ok"


def test_a_text_that_no_run_writes_is_a_failure():
  assert parse_status("lost: in the post") == Status(Outcome.FAILED, "lost: in the post")

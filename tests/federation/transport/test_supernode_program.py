"""What the SuperNode's program changes in Flower's; a soak (benchmarks/soak) has the whole."""

import httpx
import pytest

from afspl_jax.federation.transport import supernode_program
from afspl_jax.federation.transport.flower_private import fleet_http_connection


@pytest.fixture
def is_final(monkeypatch):
  """Whether the SuperNode's connection gives up at an error."""
  make = fleet_http_connection.make_simple_http_retry_invoker
  monkeypatch.setattr(fleet_http_connection, "make_simple_http_retry_invoker", make)
  supernode_program._be_patient()
  return fleet_http_connection.make_simple_http_retry_invoker().should_giveup


@pytest.mark.parametrize(
  "text",
  [
    "_ssl.c:989: The handshake operation timed out",
    "[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred in violation of protocol (_ssl.c:1006)",
    "[SSL: TLSV1_ALERT_INTERNAL_ERROR] tlsv1 alert internal error",
    "Connection refused",
  ],
)
def test_a_superlink_that_is_away_is_tried_again(is_final, text):
  assert not is_final(httpx.ConnectError(text))


def test_a_certificate_that_is_not_trusted_is_final(is_final, superlink):
  with httpx.Client() as client, pytest.raises(httpx.ConnectError) as error:
    client.get(f"https://{superlink.service.address}")
  assert is_final(error.value)


def test_the_process_ends_with_its_main_thread(monkeypatch):
  """Flower returns after a failure, and leaves a thread running."""
  ended = []
  monkeypatch.setattr(supernode_program, "flower_supernode", lambda: None)
  monkeypatch.setattr(supernode_program, "_guard_tasks", lambda: None)
  monkeypatch.setattr(supernode_program, "_be_patient", lambda: None)
  monkeypatch.setattr(supernode_program.logging, "shutdown", lambda: None)
  monkeypatch.setattr(supernode_program.os, "_exit", ended.append)
  supernode_program.main()
  assert ended == [1]


def test_an_answer_is_judged_as_flower_does(is_final):
  def answer(status):
    request = httpx.Request("POST", "https://fed.example.org")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(status))

  assert is_final(answer(404)) and not is_final(answer(503))

"""The program of a SuperNode: Flower's own, with two changes.

It hands out only whole messages (task_gate.py), and its connection keeps trying.

Flower's connection gives up for good at the first failure whose text has "ssl", "tls" or
"certificate" in it: also if a TLS handshake takes too long because the SuperLink stands still, or
if a port forwarder accepts a connection while the SuperLink is away. Its main thread then ends, but
the process does not. Here only a certificate that is not trusted is final, and the process ends
with its main thread, so that the site starts it again.
"""

import logging
import os
import traceback

import httpx

from afspl_jax.federation.transport.flower_private import (
  RetryInvoker,
  fleet_http_connection,
  flower_supernode,
  start_client_internal,
  supernode_main,
)
from afspl_jax.federation.transport.task_gate import TaskGate

_NOT_TRUSTED = "certificate_verify_failed"  # in the text of an error of OpenSSL


def main() -> None:
  """Runs `flower-supernode` with its arguments."""
  _guard_tasks()
  _be_patient()
  status = 1  # Flower returns only after a failure, which it has logged
  try:
    flower_supernode()
  except SystemExit as exit:
    status = exit.code if isinstance(exit.code, int) else 1
  except BaseException:  # noqa: BLE001 - the process ends, and its log has the reason
    traceback.print_exc()
  finally:
    logging.shutdown()
    os._exit(status)  # threads of Flower's HTTP server would keep the process alive


def _guard_tasks() -> None:
  gate = TaskGate(start_client_internal._pull_and_store_message)
  start_client_internal._pull_and_store_message = gate.fetch
  create_app = supernode_main.create_app
  supernode_main.create_app = lambda **arguments: gate.guard(create_app(**arguments))


def _be_patient() -> None:
  make_retries = fleet_http_connection.make_simple_http_retry_invoker

  def make_patient_retries() -> RetryInvoker:
    retries = make_retries()
    is_final = retries.should_giveup

    def is_final_here(error: Exception) -> bool:
      if isinstance(error, httpx.TransportError):
        return _NOT_TRUSTED in str(error).lower()
      return is_final(error)

    retries.should_giveup = is_final_here
    return retries

  fleet_http_connection.make_simple_http_retry_invoker = make_patient_retries

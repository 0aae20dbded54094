"""Requests about Flower's tasks that both executors send: to acquire a task, and to keep it."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from afspl_jax.federation.transport.connection import RETRY_STATUS, FlowerService
from afspl_jax.federation.transport.flower_private import (
  AcquireTaskRequest,
  HeartbeatSender,
  RuntimeHttpClient,
  SendTaskHeartbeatRequest,
)


def acquire_task(client: RuntimeHttpClient, task_type: str) -> tuple[int, str]:
  """Returns the run and the token of the oldest task; the token is "" if there is none."""
  response = client.AcquireTask(AcquireTaskRequest(supported_task_types=[task_type]))
  return response.task.run_id, response.token


@contextmanager
def send_heartbeats(service: FlowerService, token: str) -> Iterator[None]:
  """Renews a task's lease, which lasts a minute, while the context is open."""
  with service.runtime_client(token, retry_seconds=0.0) as client:
    sender = HeartbeatSender(lambda: _send_heartbeat(client))
    sender.start()
    try:
      yield
    finally:
      sender.stop()


def _send_heartbeat(client: RuntimeHttpClient) -> bool:
  """Sends one heartbeat; returns False to have it sent again soon."""
  try:
    client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
  except httpx.TransportError:
    return False
  except httpx.HTTPStatusError as error:
    return error.response.status_code not in RETRY_STATUS  # the executor will see a lost lease
  return True

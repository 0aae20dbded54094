"""Requests to the SuperLink or SuperNode on this host."""

import contextlib
import hashlib
import io
import secrets
import socket
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from afspl_jax.federation.transport.flower_private import (
  ApiErrorCode,
  ControlHttpClient,
  Fab,
  FlowerError,
  ListNodesRequest,
  ListRunsRequest,
  ProtobufCall,
  ProtobufRequestContext,
  RegisterNodeRequest,
  RetryInvoker,
  RuntimeHttpClient,
  RuntimeTokenHttpInterceptor,
  RuntimeVersionHttpInterceptor,
  StartRunRequest,
  Status,
  StopRunRequest,
  SuperExecAuthHttpInterceptor,
  exponential,
)
from afspl_jax.storage.atomic_files import create_file

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
RETRY_STATUS = (502, 503, 504)  # HTTP status of a server that is about to start or stop

# What `flwr run` would upload. Flower starts no run without it. Nothing installs or imports it.
_APP = """\
[project]
name = "afspl_jax"
version = "0"

[tool.flwr.app]
publisher = "afspl_jax"

[tool.flwr.app.components]
serverapp = "none:none"
clientapp = "none:none"
"""


@dataclass(frozen=True)
class FlowerService:
  """A SuperLink or SuperNode on this host: its address, and what its clients must present."""

  address: str  # HOST:PORT
  secret: str = field(repr=False)  # of the host: for access_control.py, and signs requests
  ca: bytes | None = field(repr=False)  # PEM; None: without TLS

  def control_client(self, retry_seconds: float = 10.0) -> ControlHttpClient:
    """Returns a client that starts runs and registers nodes.

    Args:
      retry_seconds: how long a request is repeated while the service does not answer.
    """
    return ControlHttpClient.from_server_address(
      self.address,
      self.ca is None,
      self.ca,
      self._interceptors(),
      retry_invoker=_retries(retry_seconds),
    )

  def runtime_client(
    self, token: str | None = None, retry_seconds: float = 10.0
  ) -> RuntimeHttpClient:
    """Returns a client for an executor of tasks.

    Args:
      token: the token of the task to execute; None: to acquire one.
      retry_seconds: how long a request is repeated while the service does not answer.
    """
    return RuntimeHttpClient.from_server_address(
      self.address,
      self.ca is None,
      self.ca,
      [
        *self._interceptors(),
        RuntimeTokenHttpInterceptor(token)
        if token
        else SuperExecAuthHttpInterceptor(
          master_secret=self.secret.encode(), protected_methods={_ACQUIRE}
        ),
      ],
      retry_invoker=_retries(retry_seconds),
    )

  def is_up(self) -> bool:
    """Returns whether the service answers.

    Raises:
      httpx.HTTPStatusError: it rejects the secret: it is another SuperLink.
      httpx.ConnectError: its certificate is for another address or from another CA.
    """
    try:
      with self.control_client(retry_seconds=0.0) as client:
        client.ListNodes(ListNodesRequest())
    except httpx.TransportError as error:
      if _is_certificate_error(error):
        raise
      return False
    return True

  def register_node(self, public_key: bytes) -> None:
    """Allows the SuperNode with this public key (PEM) to connect; it may be allowed already."""
    with self.control_client() as client:
      try:
        client.RegisterNode(RegisterNodeRequest(public_key=public_key))
      except httpx.HTTPStatusError as error:
        answer = FlowerError.from_json(error.response.text)
        if answer is None or answer.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
          raise

  def end_runs(self) -> None:
    """Ends unfinished runs, and deletes the messages of finished ones.

    Sites would otherwise work on the messages of an earlier process before those of a new run.
    """
    with self.control_client() as client:
      for run_id, run in client.ListRuns(ListRunsRequest()).run_dict.items():
        if run.status.status != Status.FINISHED:
          with contextlib.suppress(httpx.HTTPStatusError):  # it has just ended
            client.StopRun(StopRunRequest(run_id=run_id))

  def start_run(self) -> int:
    """Starts a run, which waits for an executor; returns its id."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
      bundle.writestr("pyproject.toml", _APP)
    data = content.getvalue()
    fab = Fab(hash_str=hashlib.sha256(data).hexdigest(), content=data)
    with self.control_client() as client:
      return client.StartRun(StartRunRequest(fab=fab)).run_id

  def _interceptors(self) -> Sequence[object]:
    return [BearerTokenInterceptor(self.secret), RuntimeVersionHttpInterceptor("afspl")]


class BearerTokenInterceptor:
  """Adds the host's secret to every request: access_control.py wants it, a SuperNode ignores it."""

  def __init__(self, secret: str):
    self._header = f"Bearer {secret}"

  def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
    """Sends the request with the secret."""
    context.request.headers["authorization"] = self._header
    return call_next(context)


def write_new_secret(folder: Path) -> str:
  """Writes a new secret to the file `secret` of a folder, readable by its owner; returns it."""
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  file = folder / "secret"
  file.unlink(missing_ok=True)
  secret = secrets.token_hex(32)
  create_file(file, secret.encode(), 0o600)
  return secret


def free_port() -> int:
  """Returns a port of this host's loopback on which nothing listens."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _retries(seconds: float) -> RetryInvoker:
  """Flower's retry policy, which does not interrupt this process when a request is rejected."""
  return RetryInvoker(
    lambda: exponential(base_delay=0.2, max_delay=3),
    (httpx.TransportError, httpx.HTTPStatusError),
    max_tries=None,
    max_time=seconds,
    should_giveup=_is_final,
  )


def _is_final(error: Exception) -> bool:
  if isinstance(error, httpx.HTTPStatusError):
    return error.response.status_code not in RETRY_STATUS
  return _is_certificate_error(error)


def _is_certificate_error(error: Exception) -> bool:
  return "certificate" in str(error).lower()

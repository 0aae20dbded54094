"""Requests to a SuperLink or SuperNode of this host."""

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
BUSY = (502, 503, 504)  # HTTP status of a server that is about to come or go

# What `flwr run` would upload: Flower starts no run without. Nobody installs or imports it.
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
class Endpoint:
  """Where a SuperLink or SuperNode answers, and what it asks of those it answers."""

  address: str  # HOST:PORT
  secret: str = field(repr=False)  # of the host: shown at the SuperLink's gate, and signs requests
  ca: bytes | None = field(repr=False)  # PEM; None: without TLS

  def control(self, patience: float = 10.0) -> ControlHttpClient:
    """A client that starts runs and registers nodes; `patience` as in `runtime`."""
    return ControlHttpClient.from_server_address(
      self.address,
      self.ca is None,
      self.ca,
      self._interceptors(),
      retry_invoker=_retries(patience),
    )

  def runtime(self, token: str | None = None, patience: float = 10.0) -> RuntimeHttpClient:
    """A client for who executes tasks.

    Args:
      token: of the task that it works for; None: it acquires one.
      patience: seconds for which a request is tried again while nobody answers.
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
      retry_invoker=_retries(patience),
    )

  def answers(self) -> bool:
    """Whether it is up.

    Raises:
      httpx.HTTPStatusError: it does not know the secret: it is another one.
      httpx.ConnectError: its certificate is not for this address or not of this CA.
    """
    try:
      with self.control(patience=0.0) as client:
        client.ListNodes(ListNodesRequest())
    except httpx.TransportError as error:
      if _is_tls(error):
        raise
      return False
    return True

  def register(self, public_key: bytes) -> None:
    """Lets the SuperNode with this key (PEM) connect, if it may not already."""
    with self.control() as client:
      try:
        client.RegisterNode(RegisterNodeRequest(public_key=public_key))
      except httpx.HTTPStatusError as error:
        known = FlowerError.from_json(error.response.text)
        if known is None or known.code != ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE:
          raise

  def end_runs(self) -> None:
    """Ends the runs that are unfinished, and deletes the messages of those that are finished.

    What an earlier process left would otherwise be worked on before what a new run asks for.
    """
    with self.control() as client:
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
    with self.control() as client:
      return client.StartRun(StartRunRequest(fab=fab)).run_id

  def _interceptors(self) -> Sequence[object]:
    return [_Pass(self.secret), RuntimeVersionHttpInterceptor("afspl")]


def new_secret(folder: Path) -> str:
  """Writes a new secret to the folder's file `secret`, for its owner alone, and returns it."""
  folder.mkdir(mode=0o700, parents=True, exist_ok=True)
  file = folder / "secret"
  file.unlink(missing_ok=True)
  secret = secrets.token_hex(32)
  create_file(file, secret.encode(), 0o600)
  return secret


def free_port() -> int:
  """A port of this host's loopback that nothing listens on."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


class _Pass:
  """Shows the host's secret at the SuperLink's gate; a SuperNode ignores it."""

  def __init__(self, secret: str):
    self._header = f"Bearer {secret}"

  def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
    context.request.headers["authorization"] = self._header
    return call_next(context)


def _retries(patience: float) -> RetryInvoker:
  """Flower's own policy without its end: it sends this process SIGINT when it is refused."""
  return RetryInvoker(
    lambda: exponential(base_delay=0.2, max_delay=3),
    (httpx.TransportError, httpx.HTTPStatusError),
    max_tries=None,
    max_time=patience,
    should_giveup=_is_final,
  )


def _is_final(error: Exception) -> bool:
  if isinstance(error, httpx.HTTPStatusError):
    return error.response.status_code not in BUSY
  return _is_tls(error)


def _is_tls(error: Exception) -> bool:
  return "certificate" in str(error).lower()

"""The SuperLink of the server's host: a child process that carries the messages.

Someone who reaches its port and is no site of the federation cannot use it:

- TLS: sites verify the server with the federation's own CA.
- A SuperNode signs its requests, and its key must be registered here.
- Flower lets anyone register keys, and start and stop runs. Our access control (access_control.py)
  asks for a secret, which is in a file of this host that only its owner can read.
- A run that somebody starts with that secret is never executed. The only executor is `open_grid`.
  It uses the same secret, executes the run that it started, and ends others as failed. It executes
  objects of this process: code that a run carries is neither installed nor imported.

A firewall can limit how often a stranger tries. A site has a registered key, and can send false
updates: screening and the strategy defend against those.
"""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from afspl_jax.errors import UserError
from afspl_jax.federation.transport import site_keys
from afspl_jax.federation.transport.certificates import TlsFiles, read_ca
from afspl_jax.federation.transport.child_process import ChildProcess, SupervisedProcess
from afspl_jax.federation.transport.connection import FlowerService, write_new_secret

# Seconds until it must answer. A busy host takes ten times as long as an idle one.
_START_TIMEOUT = 120.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # address to reach a listener on all addresses


class SuperLink:
  """Runs a SuperLink while the context is open, and restarts it when it dies.

  Its database survives it and this process: registered sites stay registered. A run does not
  survive if the SuperLink is down for more than a minute: `open_grid` then raises RunLost, and a
  new run continues from the checkpoint.

  Args:
    folder: database, log and secret; created if missing.
    host: address to listen on; "0.0.0.0" for all.
    port: port to listen on.
    tls: files of this host; None: no TLS, and anyone who reaches the port can be a site. Use that
      only for experiments on one host.
    notify: gets every message for the user.
  """

  _program = "afspl_jax.federation.transport.access_control:main"

  def __init__(
    self,
    folder: Path,
    host: str,
    port: int,
    tls: TlsFiles | None,
    notify: Callable[[str], None] = print,
  ):
    self._folder, self._host, self._port = folder.absolute(), host, port
    self._tls, self._notify = tls, notify
    self._closed = threading.Event()
    self.site_names: dict[bytes, str] = {}  # of registered sites, by public key (PEM)

  def __enter__(self) -> "SuperLink":
    """Starts it and waits until it answers.

    Raises:
      UserError: the port is in use, or the SuperLink does not start.
    """
    ca = None if self._tls is None else read_ca(self._tls.ca)
    _require_free_port(self._host, self._port)
    secret = write_new_secret(self._folder)
    address = _LOOPBACK.get(self._host, self._host)
    address = f"[{address}]:{self._port}" if ":" in address else f"{address}:{self._port}"
    self.service = FlowerService(address, secret, ca)
    self._process = SupervisedProcess(f"SuperLink at {address}", self._start, self._notify)
    try:
      self._wait_until_up()
    except BaseException:
      self._process.child.stop()
      raise
    self._supervisor = threading.Thread(target=self._supervise, daemon=True)
    self._supervisor.start()
    return self

  def __exit__(self, *_: object) -> None:
    """Ends it."""
    self._closed.set()
    self._supervisor.join()
    self._process.child.stop()

  @property
  def child(self) -> ChildProcess:
    """The current process."""
    return self._process.child

  def register(self, public_key: Path) -> None:
    """Allows the site with this key to connect, under the file's name; it may be allowed already.

    Args:
      public_key: the site's `SITE.pub`.

    Raises:
      UserError: the file is not a site's public key.
    """
    key = site_keys.read_public_key(public_key)
    self.service.register_node(key)
    self.site_names[key] = public_key.stem

  def start_new_run(self) -> int:
    """Ends all runs and starts one, for `open_grid` to execute; returns its id."""
    self.service.end_runs()
    return self.service.start_run()

  def _start(self) -> ChildProcess:
    options = {
      "--host": self._host,
      "--port": str(self._port),
      "--isolation": "process",
      "--superexec-auth-secret-file": str(self._folder / "secret"),
      "--database": str(self._folder / "superlink.db"),
    }
    flags = ["--disable-runtime-dependency-installation"]
    if self._tls is None:
      flags += ["--insecure"]
    else:
      flags += ["--enable-supernode-auth"]
      options["--ssl-ca-certfile"] = str(self._tls.ca.absolute())
      options["--ssl-certfile"] = str(self._tls.certificate.absolute())
      options["--ssl-keyfile"] = str(self._tls.key.absolute())
    arguments = [argument for option in options.items() for argument in option]
    return ChildProcess(self._program, [*arguments, *flags], self._folder)

  def _wait_until_up(self) -> None:
    end = time.monotonic() + _START_TIMEOUT
    while True:
      if not self.child.is_running():
        raise UserError(
          f"SuperLink: expected it to start; it ended with {self.child.exit_reason()}"
        )
      try:
        if self.service.is_up():
          return
      except httpx.HTTPError as error:
        raise UserError(
          f"SuperLink at {self.service.address}: expected to reach it; got {error}. Make the"
          " server's certificate for the host that it listens on, and end other programs on its"
          " port"
        ) from error
      if time.monotonic() > end:
        raise UserError(
          f"SuperLink at {self.service.address}: expected an answer within {_START_TIMEOUT:.0f} s;"
          f" got none. See {self.child.log}"
        )
      time.sleep(0.1)

  def _supervise(self) -> None:
    while not self._closed.wait(0.5):
      self._process.restart_if_ended()


def _require_free_port(host: str, port: int) -> None:
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  with socket.socket(family, socket.SOCK_STREAM) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind((host, port))
    except (OSError, OverflowError) as error:
      raise UserError(
        f"port: expected a free port on {host}; got {port} ({error}). Choose another port, or end"
        " the program that uses it"
      ) from error

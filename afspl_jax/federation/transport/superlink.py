"""The SuperLink of the server's host: a child that carries the messages.

Who can reach its port, and is none of the federation, can do nothing but knock. How often they
may is for a firewall.

- TLS: they need not show a certificate, but sites know the server by the federation's own CA.
- A SuperNode's requests are signed with its key, and the key must have been registered here.
- Flower lets anyone register keys, start runs and stop them. Our gate (gate.py) asks for a secret,
  which is in a file of this host that its owner alone can read.
- A run that somebody starts all the same, because they read that file, is never executed: the one
  executor is `open_grid`, which works for the run it started, and ends others as failed. It asks
  for work with the same secret. What it works with is this process's own objects: the code that a
  run carries is not installed or imported.

Who holds a registered key is a site, and can send false updates: that is for screening and for the
strategy.
"""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from afspl_jax.errors import UserError
from afspl_jax.federation.transport import site_keys
from afspl_jax.federation.transport.certificates import ServerKeys, read_ca
from afspl_jax.federation.transport.child_process import Child, Kept
from afspl_jax.federation.transport.connection import Endpoint, new_secret

_START = 120.0  # seconds until it must answer: a busy host takes ten times as long as an idle one
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # bound to all addresses: reached under this one


class SuperLink:
  """Runs a SuperLink while the context is open, and starts it again when it dies.

  Its database outlives it, and it and this process: registered sites stay registered, and a
  federation goes on where it was. What dies with it for more than a minute is a run: `open_grid`
  then says so, and a new one goes on from the checkpoint.

  Args:
    folder: database, log and secret; made if missing.
    host: address to listen on; "0.0.0.0" for all.
    port: to listen on.
    server_keys: of this host; None: no TLS, and whoever reaches the port can be a site. That is for
      experiments on one host.
    say: tells the user what happens to it.
  """

  _program = "afspl_jax.federation.transport.gate:main"

  def __init__(
    self,
    folder: Path,
    host: str,
    port: int,
    server_keys: ServerKeys | None,
    say: Callable[[str], None] = print,
  ):
    self._folder, self._host, self._port = folder.absolute(), host, port
    self._keys, self._say = server_keys, say
    self._closed = threading.Event()
    self.names: dict[bytes, str] = {}  # of registered sites, by public key (PEM)

  def __enter__(self) -> "SuperLink":
    """Starts it and waits until it answers.

    Raises:
      UserError: the port is in use, or it did not come up.
    """
    ca = None if self._keys is None else read_ca(self._keys.ca)
    _refuse_used_port(self._host, self._port)
    secret = new_secret(self._folder)
    address = _ANY.get(self._host, self._host)
    address = f"[{address}]:{self._port}" if ":" in address else f"{address}:{self._port}"
    self.endpoint = Endpoint(address, secret, ca)
    self._kept = Kept(f"SuperLink at {address}", self._start, self._say)
    try:
      self._wait()
    except BaseException:
      self._kept.child.end()
      raise
    self._watch = threading.Thread(target=self._keep, daemon=True)
    self._watch.start()
    return self

  def __exit__(self, *_: object) -> None:
    """Ends it."""
    self._closed.set()
    self._watch.join()
    self._kept.child.end()

  @property
  def child(self) -> Child:
    """The process of the moment."""
    return self._kept.child

  def register(self, public_key: Path) -> None:
    """Lets the site with this key connect, under its file's name; it may be able to already.

    Args:
      public_key: the site's `SITE.pub`.

    Raises:
      UserError: it is no such file.
    """
    key = site_keys.read_public_key(public_key)
    self.endpoint.register(key)
    self.names[key] = public_key.stem

  def submit(self) -> int:
    """Ends what runs there are and starts one, for `open_grid` to execute; returns its id."""
    self.endpoint.end_runs()
    return self.endpoint.start_run()

  def _start(self) -> Child:
    arguments = {
      "--host": self._host,
      "--port": str(self._port),
      "--isolation": "process",
      "--superexec-auth-secret-file": str(self._folder / "secret"),
      "--database": str(self._folder / "superlink.db"),
    }
    flags = ["--disable-runtime-dependency-installation"]
    if self._keys is None:
      flags += ["--insecure"]
    else:
      flags += ["--enable-supernode-auth"]
      arguments["--ssl-ca-certfile"] = str(self._keys.ca.absolute())
      arguments["--ssl-certfile"] = str(self._keys.certificate.absolute())
      arguments["--ssl-keyfile"] = str(self._keys.key.absolute())
    words = [word for pair in arguments.items() for word in pair]
    return Child(self._program, [*words, *flags], self._folder)

  def _wait(self) -> None:
    end = time.monotonic() + _START
    while True:
      if not self.child.alive():
        raise UserError(f"SuperLink: expected it to start; it ended, {self.child.why()}")
      try:
        if self.endpoint.answers():
          return
      except httpx.HTTPError as error:
        raise UserError(
          f"SuperLink at {self.endpoint.address}: expected to reach it; got {error}. Make the "
          "server's keys for the host that it listens on, and let nothing else use its port"
        ) from error
      if time.monotonic() > end:
        raise UserError(
          f"SuperLink at {self.endpoint.address}: expected an answer within {_START:.0f} s; got "
          f"none. See {self.child.log}"
        )
      time.sleep(0.1)

  def _keep(self) -> None:
    while not self._closed.wait(0.5):
      self._kept.check()


def _refuse_used_port(host: str, port: int) -> None:
  family = socket.AF_INET6 if ":" in host else socket.AF_INET
  with socket.socket(family, socket.SOCK_STREAM) as probe:
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
      probe.bind((host, port))
    except (OSError, OverflowError) as error:
      raise UserError(
        f"port: expected one that is free on {host}; {port} is not ({error}). Take another, or end "
        "what uses it"
      ) from error

"""The SuperNode of a site: a child process that fetches the site's messages from the server."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from afspl_jax.federation.transport import certificates, site_keys
from afspl_jax.federation.transport.child_process import ChildProcess, SupervisedProcess
from afspl_jax.federation.transport.connection import FlowerService, free_port, write_new_secret

_CONNECTED = "SuperNode ID:"  # in its output
_HINTS = {  # by a text in its output
  "[code: 2004]": "rejected: the server does not know this site's key, or has not yet dropped the"
  " site's last connection, which takes up to a minute",
  "SuperNode terminated gracefully": "because it was stopped, or because the server rejects its"
  " signatures: the key is no longer registered, or the clocks of the two hosts differ",
  "CERTIFICATE_VERIFY_FAILED": "because it does not trust the server: the server's certificate is"
  " for another address, has expired, or is not signed by the CA of the site's ca.crt",
}
_FIRST_NOTICE = 15.0  # seconds without a connection before the user gets a message


class Credentials(NamedTuple):
  """How a site recognises the server, and the server the site."""

  ca: Path  # the server's ca.crt
  key: Path  # SITE.key


class SuperNode:
  """Runs a SuperNode while the context is open; `answer_messages` answers what it fetches.

  Args:
    folder: log, secret and config; created if missing.
    superlink: HOST:PORT of the server.
    site: the site's name, for messages.
    credentials: None: no TLS, for experiments on one host.
    config: the ClientApp's `context.node_config`, such as {"partition-id": 0}.
    notify: gets every message for the user.
  """

  _program = "afspl_jax.federation.transport.supernode_program:main"

  def __init__(
    self,
    folder: Path,
    superlink: str,
    site: str,
    credentials: Credentials | None,
    config: Mapping[str, bool | int | float | str],
    notify: Callable[[str], None] = print,
  ):
    self.site = site
    self._folder, self._superlink = folder.absolute(), superlink
    self._credentials, self._config, self._notify = credentials, dict(config), notify
    self._connected: ChildProcess | None = None  # the child whose connection was reported
    self._unconnected: ChildProcess | None = None  # the child whose missing one was reported

  def __enter__(self) -> "SuperNode":
    """Starts it; it connects as soon as it can.

    Raises:
      UserError: the credentials are missing, expired or other files.
    """
    if self._credentials is not None:
      certificates.read_ca(self._credentials.ca)
      site_keys.check_site_key(self._credentials.key)
    self._secret = write_new_secret(self._folder)
    lines = [f"{_toml(key)} = {_toml(value)}\n" for key, value in self._config.items()]
    (self._folder / "config.toml").write_text("".join(lines), encoding="utf-8")
    name = f"{self.site}: its SuperNode"
    self._process = SupervisedProcess(name, self._start, self._notify, _HINTS)
    return self

  def __exit__(self, *_: object) -> None:
    """Ends it; it signs off from the server."""
    self._process.child.stop()

  @property
  def child(self) -> ChildProcess:
    """The current process."""
    return self._process.child

  def supervise(self) -> None:
    """Restarts it if it has ended, and reports its connection; `answer_messages` calls this."""
    self._process.restart_if_ended()
    child = self.child
    if child is self._connected or not child.is_running():
      return
    if _CONNECTED in child.output():
      self._notify(f"{self.site}: connected to {self._superlink}")
      self._connected = child
    elif child is not self._unconnected and child.age() > _FIRST_NOTICE:
      self._notify(f"{self.site}: no answer from {self._superlink} yet; still trying")
      self._unconnected = child

  def _start(self) -> ChildProcess:
    port = free_port()
    self.service = FlowerService(f"127.0.0.1:{port}", self._secret, None)
    options = {
      "--superlink": self._superlink,
      "--host": "127.0.0.1",
      "--port": str(port),
      "--isolation": "process",
      "--superexec-auth-secret-file": str(self._folder / "secret"),
      "--node-config": str(self._folder / "config.toml"),
    }
    flags = []
    if self._credentials is None:
      flags += ["--insecure"]
    else:
      options["--root-certificates"] = str(self._credentials.ca.absolute())
      options["--auth-supernode-private-key"] = str(self._credentials.key.absolute())
    arguments = [argument for option in options.items() for argument in option]
    return ChildProcess(self._program, [*arguments, *flags], self._folder)


def _toml(value: bool | int | float | str) -> str:
  return json.dumps(value, ensure_ascii=False)  # these types look the same in TOML

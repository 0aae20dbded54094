"""The SuperNode of a site: a child that fetches the site's messages from the server."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from afspl_jax.federation.transport import certificates, site_keys
from afspl_jax.federation.transport.child_process import Child, Kept
from afspl_jax.federation.transport.connection import Endpoint, free_port, new_secret

_CONNECTED = "SuperNode ID:"  # in what it writes to its terminal
_HINTS = {  # by what it writes
  "[code: 2004]": "refused: the server does not know this site's key, or still counts the site's "
  "last connection, which it forgets within a minute",
  "SuperNode terminated gracefully": "for it was told to, or the server refuses what it signs: the "
  "key is no longer registered, or the clocks of the two hosts differ",
  "CERTIFICATE_VERIFY_FAILED": "refusing the server: its certificate is not for this address, has "
  "expired, or is not signed by the CA whose ca.crt the site has",
}
_SILENCE = 15.0  # seconds without an answer before the user is told


class Credentials(NamedTuple):
  """What a site knows the server by, and the server the site."""

  ca: Path  # the server's ca.crt
  key: Path  # SITE.key


class SuperNode:
  """Runs a SuperNode while the context is open; `serve` answers what it fetches.

  Args:
    folder: log, secret and config; made if missing.
    superlink: HOST:PORT of the server.
    site: the site's name, for the user.
    credentials: None: no TLS, for experiments on one host.
    config: what the ClientApp finds in `context.node_config`, such as {"partition-id": 0}.
    say: tells the user what happens to it.
  """

  def __init__(
    self,
    folder: Path,
    superlink: str,
    site: str,
    credentials: Credentials | None,
    config: Mapping[str, bool | int | float | str],
    say: Callable[[str], None] = print,
  ):
    self.site = site
    self._folder, self._superlink = folder.absolute(), superlink
    self._credentials, self._config, self._say = credentials, dict(config), say
    self._heard: Child | None = None  # the child that reached the server
    self._missed: Child | None = None  # the child of which the user was told that it did not

  def __enter__(self) -> "SuperNode":
    """Starts it; it connects when it can.

    Raises:
      UserError: the credentials are missing, expired or of another kind.
    """
    if self._credentials is not None:
      certificates.read_ca(self._credentials.ca)
      site_keys.check_site_key(self._credentials.key)
    self._secret = new_secret(self._folder)
    lines = [f"{_toml(key)} = {_toml(value)}\n" for key, value in self._config.items()]
    (self._folder / "config.toml").write_text("".join(lines), encoding="utf-8")
    self._kept = Kept(f"{self.site}: its SuperNode", self._start, self._say, _HINTS)
    return self

  def __exit__(self, *_: object) -> None:
    """Ends it; the server sees the site leave."""
    self._kept.child.end()

  @property
  def child(self) -> Child:
    """The process of the moment."""
    return self._kept.child

  def check(self) -> None:
    """Starts it again if it died, and tells when it has reached the server; `serve` calls it."""
    self._kept.check()
    child = self.child
    if child is self._heard or not child.alive():
      return
    if _CONNECTED in child.output():
      self._say(f"{self.site}: connected to {self._superlink}")
      self._heard = child
    elif child is not self._missed and child.seconds() > _SILENCE:
      self._say(f"{self.site}: no answer from {self._superlink} yet; it goes on trying")
      self._missed = child

  def _start(self) -> Child:
    port = free_port()
    self.endpoint = Endpoint(f"127.0.0.1:{port}", self._secret, None)
    arguments = {
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
      arguments["--root-certificates"] = str(self._credentials.ca.absolute())
      arguments["--auth-supernode-private-key"] = str(self._credentials.key.absolute())
    words = [word for pair in arguments.items() for word in pair]
    return Child("flower-supernode", [*words, *flags], self._folder)


def _toml(value: bool | int | float | str) -> str:
  return json.dumps(value, ensure_ascii=False)  # of what is allowed here, TOML writes all alike

"""The federation of a soak: the commands of docs/federation.md, with a slow line for each site."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from afspl_jax.federation.transport import certificates, site_keys
from afspl_jax.federation.transport.connection import free_port
from benchmarks.soak.processes import MARK
from benchmarks.soak.proxy import SlowLine
from benchmarks.soak.schedule import SERVER
from benchmarks.soak.service import Exit, Service

ROOT = Path(__file__).parents[2]
_GRACE = 40.0  # seconds to end after SIGTERM
TERMINATED = 143  # exit status of `launch.py` after SIGTERM


class Federation:
  """A server and its sites, started and started again while the context is open.

  Args:
    folder: new; for all that the processes write.
    config: file of the experiment.
    rounds: to train.
    sites: names of all sites.
    bandwidth: bytes per second and site, in each direction; 0: unlimited.
    forwarders: while the server is away, lines accept connections and close them (SlowLine).
    mark: in the environment of every process.
  """

  def __init__(
    self,
    folder: Path,
    config: Path,
    rounds: int,
    sites: Sequence[str],
    bandwidth: float,
    forwarders: bool,
    mark: str,
  ):
    self.sites, self.run = list(sites), folder / "server" / "run"
    self.port = free_port()
    self.lines = {site: SlowLine(self.port, bandwidth, forwarders) for site in sites}
    self.folder, self._mark = folder, mark
    self._flags = [f"--config={config.absolute()}", f"--config.fed.rounds={rounds}"]
    self.temporary = folder / "tmp"
    self._lines = ExitStack()

  def __enter__(self) -> "Federation":
    self.temporary.mkdir(parents=True)
    self._make_keys()
    for line in self.lines.values():
      self._lines.enter_context(line)
    self.server = self._service(SERVER, "server", f"127.0.0.1:{self.port}")
    self._hosts = [
      self._service(site, "client", f"127.0.0.1:{self.lines[site].port}", f"--site={site}")
      for site in self.sites
    ]
    return self

  def __exit__(self, *_: object) -> None:
    for service in (self.server, *self._hosts):
      service.terminate()
      service.wait(_GRACE)
    self._lines.close()

  def states(self, site: str) -> Path:
    """The folder with a site's local states."""
    return self.folder / site / "run" / "clients" / site

  def supervise(self) -> list[Exit]:
    """Starts what does not run; returns the processes that have just ended."""
    exits = [service.supervise() for service in (self.server, *self._hosts)]
    return [each for each in exits if each is not None]

  def stop(self) -> dict[str, int]:
    """Ends all processes as an operator does, the server first; returns their exit statuses.

    A server that has finished is left out.
    """
    out = {}
    for service in (self.server, *self._hosts):
      service.terminate()
      status = service.wait(_GRACE)
      if status is not None:
        out[service.name] = status
    return out

  def logs(self) -> list[Path]:
    """The outputs of the server and of the sites' hosts."""
    return [service.log for service in (self.server, *self._hosts)]

  def _service(self, name: str, role: str, address: str, *flags: str) -> Service:
    folder = self.folder / name
    command = [
      sys.executable,
      str(ROOT / "launch.py"),
      *self._flags,
      f"--role={role}",
      f"--superlink={address}",
      f"--keys={folder / 'keys'}",
      f"--workdir={folder / 'run'}",
      *flags,
    ]
    environment = os.environ | {MARK: self._mark, "TMPDIR": str(self.temporary)}
    return Service(name, command, self.folder / f"{name}.log", environment, ROOT)

  def _make_keys(self) -> None:
    """Makes the keys, and copies each to where docs/federation.md says."""
    server_keys = self.folder / SERVER / "keys"
    certificates.make_tls_files(server_keys, [])
    (server_keys / "sites").mkdir()
    for site in self.sites:
      keys = self.folder / site / "keys"
      site_keys.make_site_key(keys, site)
      (keys / "ca.crt").write_bytes((server_keys / "ca.crt").read_bytes())
      public = keys / f"{site}.pub"
      (server_keys / "sites" / public.name).write_bytes(public.read_bytes())

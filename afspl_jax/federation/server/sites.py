"""The connected sites by name, and whether they have the same settings as the server.

A node's id is random and may change. Rounds, files and people use a site's name.
"""

import json
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from afspl_jax.federation.contracts import CLIENT_RAISED, LONGEST_NAME, Rejected, is_site_name
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.server.exchange import Exchange
from afspl_jax.federation.server.screening import screen_examples
from afspl_jax.storage.client_status import one_line


class ConnectedSite(NamedTuple):
  """A site that is connected and may take part."""

  node: int  # its id
  num_examples: int  # that it reports


@runtime_checkable
class KeyedGrid(Protocol):
  """A Grid that knows its nodes by their keys."""

  def site_of(self, node: int) -> str | None:
    """Returns the site that a node's key is registered for; None if sites have no keys."""
    ...


class Sites:
  """The sites that have answered the greeting and are connected.

  Every node is greeted with the server's terms when it appears, and again if Flower loses the
  greeting. A node that answers with other terms, no name or another site's name is left out, and
  `say` gets the reason.

  Args:
    grid: reaches the nodes.
    terms: settings that a site must share with the server, by name; plain nested values.
    max_examples: the largest number that a site may report.
    say: tells the user about sites that come, go and are rejected.
  """

  def __init__(
    self,
    grid: Grid,
    terms: dict[str, Any],
    max_examples: int,
    say: Callable[[str], None] = lambda text: None,
  ):
    self._grid, self._say, self._max_examples = grid, say, max_examples
    self._hello = RecordDict({wire.CONFIG: ConfigRecord({wire.TERMS: json.dumps(terms)})})
    self._exchange: Exchange[int] = Exchange(grid)
    self._greeted: set[int] = set()
    self._present: dict[str, ConnectedSite] = {}
    self.known: dict[str, ConnectedSite] = {}  # all that were ever connected
    self.rejected: dict[int, str] = {}  # connected nodes that are left out, and why

  def look(self) -> dict[str, ConnectedSite]:
    """The connected sites by name, sorted; greets new nodes without waiting for them."""
    here = set(self._grid.get_node_ids())
    for name, site in list(self._present.items()):
      if site.node not in here:
        del self._present[name]
        self._say(f"{name}: gone")
    self._greeted &= here
    self.rejected = {node: why for node, why in self.rejected.items() if node in here}
    new = {
      node: Message(self._hello, node, wire.HELLO, group_id="0")
      for node in sorted(here - self._greeted)
    }
    if new:
      self._exchange.send(new, 0)
      self._greeted |= set(new)
    for node, _, answer in self._exchange.collect():
      reply = answer.message
      if reply is None or node not in here:
        continue
      if reply.has_error() and reply.error.code != CLIENT_RAISED:
        self._greeted.discard(node)  # Flower lost the greeting or its answer, for example
        self._say(f"node {node}: {one_line(reply.error.reason or '')} It is greeted again")
        continue
      try:
        name, num_examples = self._read(node, reply)
      except Rejected as error:
        self.rejected[node] = str(error.status)
        self._say(f"node {node}: {self.rejected[node]}")
      else:
        self._present[name] = self.known[name] = ConnectedSite(node, num_examples)
        self._say(f"{name}: here, {num_examples} examples")
    return dict(sorted(self._present.items()))

  def _read(self, node: int, reply: Message) -> tuple[str, int]:
    """The name and the number of examples in a node's answer."""
    if reply.has_error():
      raise Rejected(f"{one_line(reply.error.reason or str(reply.error.code))}")
    answer = reply.content.config_records.get(wire.CONFIG, {})
    name = answer.get(wire.SITE)
    if not isinstance(name, str) or not is_site_name(name):
      raise Rejected(
        f"expected a site's name, of 1 to {LONGEST_NAME} characters, without spaces around it; got"
        f" {one_line(repr(name))}"
      )
    site = self._grid.site_of(node) if isinstance(self._grid, KeyedGrid) else None
    if site not in (None, name):
      raise Rejected(f"expected the name that its key is registered for, {site!r}; got {name!r}")
    if name in self._present:
      raise Rejected(f"expected a new site name; got {name!r}, which is connected already")
    return name, screen_examples(answer.get(wire.NUM_EXAMPLES), self._max_examples)

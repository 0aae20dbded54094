"""A host of sites, as a program of its own: least squares over SuperNodes, until it is ended."""

import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.transport.executors import serve
from afspl_jax.federation.transport.supernode import Credentials, SuperNode
from tests.federation.least_squares import LeastSquares, init_params


def say(text):
  print(text, flush=True)


def host(app, superlink, base, sites):
  """Answers for the sites, whose names end in their index, until it is ended."""
  with ExitStack() as stack:
    nodes = [
      SuperNode(
        base / site,
        superlink,
        site,
        Credentials(base / "keys" / "ca.crt", base / "keys" / f"{site}.key"),
        {"partition-id": int(site[-2:])},
        say,
      )
      for site in sites
    ]
    for node in nodes:
      stack.enter_context(node)
      say(f"{node.site} pid {node.child.pid}")
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    serve(app, nodes, ended.is_set)


if __name__ == "__main__":
  honest = SiteApp(LeastSquares(), init_params())
  host(honest, sys.argv[1], Path(sys.argv[2]), sys.argv[3:])

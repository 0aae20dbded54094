"""A program: a host of sites that solve least squares. It runs until it is stopped."""

import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.transport.site_executor import answer_messages
from afspl_jax.federation.transport.supernode import Credentials, SuperNode
from tests.federation.least_squares import LeastSquares, init_params
from tests.federation.routed_sites import statistics


def notify(text):
  print(text, flush=True)


def host(app, superlink, base, sites):
  """Answers the messages to sites, whose names end in their index, until SIGTERM."""
  with ExitStack() as stack:
    nodes = [
      SuperNode(
        base / site,
        superlink,
        site,
        Credentials(base / "keys" / "ca.crt", base / "keys" / f"{site}.key"),
        {"partition-id": int(site[-2:])},
        notify,
      )
      for site in sites
    ]
    for node in nodes:
      stack.enter_context(node)
      notify(f"{node.site} pid {node.child.pid}")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    answer_messages(app, nodes, stopped.is_set)


if __name__ == "__main__":
  honest = SiteApp(LeastSquares(), init_params(), statistics=statistics)
  host(honest, sys.argv[1], Path(sys.argv[2]), sys.argv[3:])

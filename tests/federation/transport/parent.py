"""A program: a SuperLink and a SuperNode without TLS. It runs until it is killed."""

import sys
import time
from pathlib import Path

from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.federation.transport.supernode import SuperNode


def notify(text):
  print(text, flush=True)


def main(base, port):
  with (
    SuperLink(base / "superlink", "127.0.0.1", port, None, notify) as superlink,
    SuperNode(base / "supernode", superlink.service.address, "site", None, {}, notify) as node,
  ):
    notify(f"superlink pid {superlink.child.pid}")
    notify(f"supernode pid {node.child.pid}")
    while True:
      node.supervise()
      time.sleep(0.1)


if __name__ == "__main__":
  main(Path(sys.argv[1]), int(sys.argv[2]))

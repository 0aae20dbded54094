"""A SuperLink and a SuperNode without TLS, until this program is killed."""

import sys
import time
from pathlib import Path

from afspl_jax.federation.transport.superlink import SuperLink
from afspl_jax.federation.transport.supernode import SuperNode


def say(text):
  print(text, flush=True)


def main(base, port):
  with (
    SuperLink(base / "superlink", "127.0.0.1", port, None, say) as superlink,
    SuperNode(base / "supernode", superlink.endpoint.address, "site", None, {}, say) as node,
  ):
    say(f"superlink pid {superlink.child.pid}")
    say(f"supernode pid {node.child.pid}")
    while True:
      node.check()
      time.sleep(0.1)


if __name__ == "__main__":
  main(Path(sys.argv[1]), int(sys.argv[2]))

"""The federation over a network: Flower's SuperLink and SuperNodes, and what works for them.

The server's host runs a SuperLink as a child, and the round loop over `open_grid`. A site's host
runs a SuperNode as a child, and `serve` with the site's ClientApp. The apps are the objects of this
process: what Flower carries of code is never run, on either side.
"""

import os

# The two halves of a host talk over loopback: a proxy that the host uses is not for that.
_DIRECT = ["127.0.0.1", "localhost"]
for _name in ("no_proxy", "NO_PROXY"):
  _known = [host for host in os.environ.get(_name, "").split(",") if host]
  os.environ[_name] = ",".join(_known + [host for host in _DIRECT if host not in _known])

"""The federation over a network: Flower's SuperLink and SuperNodes, and the processes behind them.

The server's host runs a SuperLink as a child process, and the round loop over `open_grid`. A site's
host runs a SuperNode as a child process, and `answer_messages` with the site's ClientApp. Both apps
are objects of this process. Flower can carry code with a run; neither side executes it.
"""

import os

# The two processes of a host talk over loopback, without the proxy that the host may use.
_LOOPBACK = ["127.0.0.1", "localhost"]
for _name in ("no_proxy", "NO_PROXY"):
  _known = [host for host in os.environ.get(_name, "").split(",") if host]
  os.environ[_name] = ",".join(_known + [host for host in _LOOPBACK if host not in _known])

"""The federation over a network: Flower's SuperLink and SuperNodes, and the processes behind them.

The server's host runs a SuperLink as a child process, and the round loop over `open_grid`. A site's
host runs a SuperNode as a child process, and `answer_messages` with the site's ClientApp. Both apps
are objects of this process. Flower can carry code with a run; neither side executes it.
"""

from afspl_jax.federation.transport.proxies import bypass_proxies_for_loopback

bypass_proxies_for_loopback()

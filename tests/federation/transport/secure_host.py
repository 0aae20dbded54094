"""A program: a host of sites with secure aggregation. It runs until it is stopped.

The sites sign with the keys that they are registered with, and pin those of the others.
"""

import sys
from pathlib import Path

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.secure.identity import Identity
from afspl_jax.federation.secure.party import Rules
from afspl_jax.federation.secure.roster import ROSTER, Roster
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.secure.terms import Terms
from afspl_jax.federation.transport.site_keys import read_private_key
from tests.federation.least_squares import LeastSquares, init_params
from tests.federation.transport.site_host import host

TERMS = Terms(Rules(0.6), bits=24, clip=4.0, max_weight=100)

if __name__ == "__main__":
  base, sites = Path(sys.argv[2]), sys.argv[3:]
  identities = {
    site: Identity(
      site, read_private_key(base / "keys" / f"{site}.key"), Roster(base / site / ROSTER)
    )
    for site in sites
  }
  masking = SecureSite(TERMS, identities.__getitem__)
  host(SiteApp(LeastSquares(), init_params(), masking=masking), sys.argv[1], base, sites)

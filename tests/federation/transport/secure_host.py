"""A program: a host of sites with secure aggregation. It runs until it is stopped."""

import sys
from pathlib import Path

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.secure.party import Rules
from afspl_jax.federation.secure.site import SecureSite
from afspl_jax.federation.secure.terms import Terms
from tests.federation.least_squares import LeastSquares, init_params
from tests.federation.transport.site_host import host

TERMS = Terms(Rules(0.6), bits=24, clip=4.0, max_weight=100)

if __name__ == "__main__":
  app = SiteApp(LeastSquares(), init_params(), masking=SecureSite(TERMS))
  host(app, sys.argv[1], Path(sys.argv[2]), sys.argv[3:])

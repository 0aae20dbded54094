"""How the server meets its sites."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from least_squares import CLIENTS, LeastSquares, init_params

from afspl_jax.federation import wire
from afspl_jax.federation.client import make_client_app
from afspl_jax.federation.local_grid import LocalGrid
from afspl_jax.federation.server import make_server_app, meet


def test_a_server_with_another_model_is_refused_by_the_client(plan):
  run = plan()
  app = make_client_app(LeastSquares(), {"other": np.zeros(3, np.float32)})
  with pytest.raises(RuntimeError, match=r"site_00: expected params of structure .* Run the same"):
    context = Context(1, 1, {}, RecordDict(), {})
    make_server_app(run, CLIENTS)(LocalGrid(app, CLIENTS), context)
  grid = LocalGrid(app, 1)
  content = RecordDict({"arrays": wire.pack(init_params()), "config": ConfigRecord({"round": 1})})
  (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "train")])
  assert "structure of the params: this site has" in reply.error.reason


def test_sites_are_told_apart_by_name_not_by_node(plan):
  class Backwards(LeastSquares):
    def site(self, client):
      return f"site_{CLIENTS - client}"

  grid = LocalGrid(make_client_app(Backwards(), init_params()), CLIENTS)
  nodes = meet(grid, wire.structure_digest(init_params()), CLIENTS)
  assert list(nodes) == ["site_1", "site_2", "site_3", "site_4"]
  assert list(nodes.values()) == sorted(grid.get_node_ids(), reverse=True)


def test_two_sites_of_one_name_are_refused():
  class Same(LeastSquares):
    def site(self, client):
      return "clinic"

  grid = LocalGrid(make_client_app(Same(), init_params()), 2)
  with pytest.raises(RuntimeError, match="expected a site name of its own; got 'clinic'"):
    meet(grid, wire.structure_digest(init_params()), 2)


def test_missing_sites_are_an_error_not_a_smaller_federation():
  grid = LocalGrid(make_client_app(LeastSquares(), init_params()), 3)
  with pytest.raises(RuntimeError, match=r"expected 5 sites within 0.05 s; got 3"):
    meet(grid, wire.structure_digest(init_params()), 5, 0.05)

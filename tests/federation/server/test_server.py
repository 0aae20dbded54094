"""How the server meets its sites."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.server.roll_call import RollCall
from afspl_jax.federation.server.round_request import RoundFailed
from afspl_jax.federation.server.rounds import run_rounds
from afspl_jax.federation.server.server_app import make_server_app
from afspl_jax.federation.server.sites import Sites
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import CLIENTS, LeastSquares, init_params
from tests.federation.watching import Watching

MOST = 10**6


def sites_of(trainer, number=CLIENTS, params=None, terms=None):
  grid = LocalGrid(SiteApp(trainer, init_params(), terms), number)
  return Sites(grid, wire.terms(params or init_params(), terms or {}), MOST), grid


def sites_on(grid, on_site=lambda text: None):
  return Sites(grid, wire.terms(init_params(), {}), MOST, on_site)


def test_a_server_with_another_model_is_rejected_by_the_client(plan):
  run = plan(wait=0.0)
  app = SiteApp(LeastSquares(), {"other": np.zeros(3, np.float32)})
  with pytest.raises(RoundFailed, match=r"rejected: .*structure: '\w+' -> '\w+'.* Run the same"):
    context = Context(1, 1, {}, RecordDict(), {})
    make_server_app(run, CLIENTS)(LocalGrid(app, CLIENTS), context)
  grid = LocalGrid(app, 1)
  content = RecordDict({"arrays": wire.pack(init_params()), "config": ConfigRecord({"round": 1})})
  (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "train")])
  assert "structure of the params: this site has" in reply.error.reason


def test_the_item_in_which_site_and_server_differ_is_named():
  ours = {"version": "1.0", "t5": "abc", "config": {"optim": {"batch_size": 16}}}
  theirs = {"version": "1.0", "t5": "abd", "config": {"optim": {"batch_size": 8}}}
  grid = LocalGrid(SiteApp(LeastSquares(), init_params(), theirs), 1)
  sites = Sites(grid, wire.terms(init_params(), ours), MOST)
  assert sites.look() == {}
  (why,) = sites.rejected.values()
  assert "(site -> server): config.optim.batch_size: 8 -> 16; t5: 'abd' -> 'abc'" in why


def test_what_only_the_server_names_is_none_of_a_sites_business():
  ours = {"config": {"optim": {"batch_size": 8}}}
  theirs = {"config": {"optim": {"batch_size": 8, "new": 1}, "more": 2}, "split": {"a": 1}}
  grid = LocalGrid(SiteApp(LeastSquares(), init_params(), ours), 1)
  assert list(Sites(grid, wire.terms(init_params(), theirs), MOST).look()) == ["site_00"]
  sites = Sites(grid, wire.terms(init_params(), {"config": {"optim": 3}}), MOST)
  assert sites.look() == {} and "config.optim" in next(iter(sites.rejected.values()))


def test_terms_that_are_no_json_are_rejected():
  grid = LocalGrid(SiteApp(LeastSquares(), init_params()), 1)
  for asked in ({}, {wire.TERMS: "{"}, {wire.TERMS: "[]"}, {wire.TERMS: 3}):
    hello = RecordDict({wire.CONFIG: ConfigRecord(asked)})
    (reply,) = grid.send_and_receive([Message(hello, grid.get_node_ids()[0], wire.HELLO)])
    assert "terms: expected a JSON object" in reply.error.reason


def test_sites_are_told_apart_by_name_not_by_node():
  class Backwards(LeastSquares):
    def site(self, client):
      return f"site_{CLIENTS - client}"

  sites, grid = sites_of(Backwards())
  found = sites.look()
  assert list(found) == ["site_1", "site_2", "site_3", "site_4"]
  assert [site.node for site in found.values()] == sorted(grid.get_node_ids(), reverse=True)


def test_two_sites_of_one_name_are_rejected():
  class Same(LeastSquares):
    def site(self, client):
      return "clinic"

  sites, _ = sites_of(Same(), 2)
  assert list(sites.look()) == ["clinic"]
  (why,) = sites.rejected.values()
  assert "expected a new site name; got 'clinic'" in why


@pytest.mark.parametrize("name", ["", "a\nb", " clinic", "x" * 81, 7])
def test_a_name_that_is_none_is_rejected(name):
  class Odd(LeastSquares):
    def site(self, client):
      return name

  sites, _ = sites_of(Odd(), 1)
  assert sites.look() == {}
  (why,) = sites.rejected.values()
  assert "expected a site's name, of 1 to 80 characters" in why


def test_missing_sites_are_an_error_not_a_smaller_federation(plan):
  run = plan(wait=0.05)
  grid = LocalGrid(SiteApp(LeastSquares(), init_params()), 3)
  call = RollCall(grid, sites_on(grid), run.fed, 0, 5)
  with pytest.raises(RoundFailed, match=r"expected 5 sites within 0.05 s \(fed.wait\); got 3"):
    call.choose(1)


def test_a_site_has_the_name_that_its_key_was_registered_for():
  class Keyed(LocalGrid):
    def site_of(self, node):
      return {2: "site_00", 3: "site_00", 4: None}[node]

  grid = Keyed(SiteApp(LeastSquares(), init_params()), 3)
  sites = Sites(grid, wire.terms(init_params(), {}), MOST)
  assert list(sites.look()) == ["site_00", "site_02"]
  (why,) = sites.rejected.values()
  assert why.endswith("the name that its key is registered for, 'site_00'; got 'site_01'")


def test_a_node_whose_greeting_flower_lost_is_greeted_again():
  class Losing(LocalGrid):
    def __init__(self, *args):
      super().__init__(*args)
      self.left = 2

    def pull_messages(self, message_ids):
      replies = list(super().pull_messages(message_ids))
      if self.left and replies:
        self.left -= 1
        error = Error(ErrorCode.MESSAGE_UNAVAILABLE, "Error: Message Unavailable.")
        for reply in replies:
          reply.__dict__.update(_content=None, _error=error)
      return replies

  said = []
  sites = sites_on(Losing(SiteApp(LeastSquares(), init_params()), 2), said.append)
  assert sites.look() == sites.look() == {}
  assert not sites.rejected and list(sites.look()) == ["site_00", "site_01"]
  assert said[0] == "node 2: Error: Message Unavailable. It is greeted again" and len(said) == 6


def test_sites_that_do_not_come_are_waited_for_once(plan):
  run, watching = plan(wait=0.05, retries=3), Watching()
  grid = LocalGrid(SiteApp(LeastSquares(), init_params()), 3)
  with pytest.raises(RoundFailed, match=r"expected 5 sites .* start the same command again"):
    run_rounds(grid, run, 5, watching)
  assert watching.said == []


class Coming(LocalGrid):
  """Nodes come and go."""

  def __init__(self, app, number):
    super().__init__(app, number)
    self.here = super().get_node_ids()

  def get_node_ids(self):
    return self.here


def test_a_site_that_is_gone_is_recorded_and_one_that_is_back_takes_part(plan):
  run, said = plan(wait=0.0), []
  grid = Coming(SiteApp(LeastSquares(), init_params()), CLIENTS)
  call = RollCall(grid, sites_on(grid, said.append), run.fed, 0, CLIENTS)
  assert list(call.choose(1).nodes) == [f"site_{i:02d}" for i in range(CLIENTS)]
  everyone = grid.here
  grid.here = everyone[1:]
  chosen = call.choose(2)
  assert list(chosen.nodes) == ["site_01", "site_02", "site_03"]
  assert {name: str(status) for name, status in chosen.absent.items()} == {
    "site_00": "failed: not connected"
  }
  grid.here = everyone
  assert len(call.choose(3).nodes) == CLIENTS and not call.choose(3).absent
  assert said[CLIENTS:] == ["site_00: gone", "site_00: here, 10 examples"]


def test_coins_are_not_tossed_again_for_another_attempt_at_a_round(plan):
  grid = LocalGrid(SiteApp(LeastSquares(), init_params()), 20)
  run = plan(selection="poisson", clients_per_round=10)
  calls = [RollCall(grid, sites_on(grid), run.fed, 0, 20) for _ in range(2)]
  drawn = [[tuple(call.choose(round).nodes) for round in (1, 1, 2)] for call in calls]
  assert drawn[0][0] == drawn[0][1] != drawn[0][2]
  assert drawn[0] != drawn[1]  # though the seed is the same


def test_a_federation_that_goes_on_may_be_smaller_and_says_so(plan):
  run, said = plan(wait=0.05), []
  grid = LocalGrid(SiteApp(LeastSquares(), init_params()), 3)
  lines = [{"client": "site_00", "num_examples": 10, "loss": 1.0, "status": "ok"}]
  call = RollCall(grid, sites_on(grid), run.fed, 0, 5, lines, said.append)
  assert len(call.choose(7).nodes) == 3
  assert said[-1] == "going on with 3 of 5 sites after 0.05 s"


def test_what_a_site_reported_for_a_failed_attempt_is_known_after_a_restart(plan):
  run = plan(selection="power_of_choice", clients_per_round=2)
  grid = LocalGrid(SiteApp(LeastSquares(), init_params()), CLIENTS)
  status = "unused: this attempt at the round failed"
  lines = [
    {"client": f"site_{i:02d}", "num_examples": 10, "loss": float(i), "status": status}
    for i in range(CLIENTS)
  ]
  call = RollCall(grid, sites_on(grid), run.fed, 0, CLIENTS, lines)
  assert list(call.choose(2).nodes) == ["site_02", "site_03"]

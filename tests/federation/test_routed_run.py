"""A federation whose keys come from the sites' images: what leaves, and what nobody trains."""

import numpy as np
import pytest

from afspl_jax import cli
from afspl_jax.federation.protocol import disclosure_list
from afspl_jax.federation.server.routing import site_routing, with_routing
from afspl_jax.federation.server.site_statistics import screen_statistics
from afspl_jax.models.prompter.site_prompts import ROUTING_LEAVES
from afspl_jax.storage.run_lines import WIRE
from tests.federation.test_privacy import REPLIES, names
from tests.recorded_run import routed_run

ROUTED = REPLIES | {
  "query.statistics": {"config": {"num-examples"}, "statistics": {"mean", "covariance"}}
}


@pytest.fixture(scope="module")
def routed(tmp_path_factory, tiny_checkpoints, shapes_dir):
  return routed_run(tmp_path_factory.getbasetemp(), tiny_checkpoints, shapes_dir)


def test_the_allow_list_is_complete_and_the_audit_finds_nothing_else(routed, capsys):
  listed = {
    (kind, record, name)
    for kind, records in ROUTED.items()
    for record, names in records.items()
    for name in names
  }
  assert set(disclosure_list.allow_list(routed.config)) == listed
  assert cli.main(["audit", str(routed.path)]) == 0, capsys.readouterr().out


def test_statistics_leave_once_and_then_no_row_of_keys_and_query(routed):
  kinds = [reply.metadata.message_type for reply in routed.replies]
  assert kinds == ["query.hello"] * 10 + ["query.statistics"] * 10 + ["train"] * 3 * 10
  for reply in routed.replies:
    assert not reply.has_error() and names(reply) == ROUTED[reply.metadata.message_type]
  lines = [line for line in routed.lines(WIRE) if line.get("type") == "train"]
  (head,) = [line["leaves"] for line in routed.lines(WIRE) if "leaves" in line]
  fixed = [leaf["name"] in ROUTING_LEAVES for leaf in head]
  assert sum(fixed) == 3
  for line in lines:
    rows = line["records"]["arrays"]["rows"]
    assert rows == [0 if no else leaf["rows"] for no, leaf in zip(fixed, head, strict=True)]


def test_statistics_are_those_of_the_sites_training_images_alone(routed):
  split, clients = routed.setup.splits["train"], routed.setup.clients["train"]
  answers = [r for r in routed.replies if r.metadata.message_type == "query.statistics"]
  for answer, (_, rows) in zip(answers, sorted(clients.items()), strict=True):
    features = split.images.joint[np.unique(split._image_row[rows])]
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, triangle = (answer.content["statistics"][n].numpy() for n in ("mean", "covariance"))
    covariance = np.cov(units.T, bias=True)[np.triu_indices(len(mean))]
    np.testing.assert_allclose(mean, units.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(triangle, covariance, atol=1e-6)
    assert answer.content["config"]["num-examples"] == len(features) < len(rows)
  assert routed.line("test")["bytes_up"] == sum(routed.bytes_up[10:])


def test_nobody_trains_what_the_server_set_from_the_statistics(routed):
  """Weight decay would move what has no gradient."""
  answers = [r for r in routed.replies if r.metadata.message_type == "query.statistics"]
  width = len(answers[0].content["statistics"]["mean"].numpy())
  screened = [screen_statistics(answer, width, 10**6) for answer in answers]
  sites = dict(zip(sorted(routed.setup.clients["train"]), screened, strict=True))
  untrained = routed.setup.shared
  before, config = untrained["sites"], routed.config
  routing = site_routing(sites, len(before["keys"]), config.seed)
  expected = with_routing(untrained, routing)["sites"]
  trained = routed.checkpoint(3)["params"]["sites"]
  assert trained["keys"].tobytes() == expected["keys"].tobytes()
  for name in ("kernel", "bias"):
    assert trained["query"][name].tobytes() == expected["query"][name].tobytes()
    assert not np.array_equal(trained["query"][name], before["query"][name])
  assert not np.array_equal(trained["prompts"], before["prompts"])

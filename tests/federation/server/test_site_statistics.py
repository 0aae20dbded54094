"""What becomes of image statistics that are not what was agreed on."""

import numpy as np
import pytest
from flwr.app import Array, Error, Message, RecordDict

from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import Rejected
from afspl_jax.federation.protocol.image_statistics import (
  STATISTICS,
  ImageStatistics,
  statistics_content,
)
from afspl_jax.federation.server.site_statistics import screen_statistics
from afspl_jax.federation.transport.local_grid import LocalGrid
from tests.federation.least_squares import LeastSquares
from tests.federation.routed_sites import WIDTH, routed_params, statistics

GOOD = statistics(0)
DIAGONAL = np.cumsum([0, *range(WIDTH, 1, -1)])  # places in the upper triangle


def answer_of(content) -> Message:
  """A real reply with this content."""
  app = SiteApp(LeastSquares(), routed_params(), statistics=statistics)
  grid = LocalGrid(app, 1)
  (reply,) = grid.send_and_receive([Message(RecordDict(), grid.get_node_ids()[0], STATISTICS)])
  reply.content = content
  return reply


def with_value(name, value, place=0):
  values = getattr(GOOD, name).copy()
  values[place] = value
  return GOOD._replace(**{name: values})


def diagonal(values):
  triangle = np.zeros_like(GOOD.covariance)
  triangle[DIAGONAL] = values
  return GOOD._replace(mean=np.zeros_like(GOOD.mean), covariance=triangle)


def test_an_honest_answer_is_accepted_as_it_was_sent():
  found = screen_statistics(answer_of(statistics_content(GOOD)), WIDTH, 100)
  assert found.num_examples == GOOD.num_examples
  np.testing.assert_array_equal(found.mean, GOOD.mean)
  np.testing.assert_array_equal(found.covariance, GOOD.covariance)


def test_what_unit_vectors_can_have_is_accepted():
  for edge in (diagonal(1 / WIDTH), diagonal([1, *[0] * (WIDTH - 1)]), diagonal(0)):
    screen_statistics(answer_of(statistics_content(edge)), WIDTH, 100)


@pytest.mark.parametrize(
  "bad, why",
  [
    (GOOD._replace(num_examples=0), "num-examples: expected an int from 1 to 100"),
    (GOOD._replace(num_examples=101), "num-examples: expected an int from 1 to 100"),
    (with_value("mean", np.nan), "mean: expected finite values; 1 of 6 are not"),
    (with_value("covariance", np.inf, 3), "covariance: expected finite values; 1 of 21 are not"),
    (diagonal(0)._replace(mean=np.eye(WIDTH, dtype=np.float32)[2] * 1.1), "at most 1; got 1.21"),
    (with_value("mean", 3e38), "to add up to at most 1; got"),
    (diagonal(1.1 / WIDTH), "to add up to at most 1; got 1.1"),
    (diagonal([0.5, -0.1, *[0.1] * (WIDTH - 2)]), "expected no eigenvalue below 0; got -0.1"),
    (with_value("covariance", 3e38, 1), "expected no eigenvalue below 0; got -"),
    (with_value("covariance", 0.9, 1), "expected no eigenvalue below 0; got -0."),
    (GOOD._replace(mean=GOOD.mean[:-1]), r"of shape \(6,\) in 'mean'"),
    (GOOD._replace(covariance=GOOD.covariance[:-1]), r"of shape \(21,\) in 'covariance'"),
    (ImageStatistics(40, GOOD.mean.astype(float), GOOD.covariance), "expected float32 of shape"),
  ],
)
def test_statistics_that_no_images_have_are_rejected(bad, why):
  content = RecordDict()
  for name, record in statistics_content(GOOD).items():
    content[name] = record
  content["config"]["num-examples"] = bad.num_examples
  content["statistics"]["mean"] = Array(bad.mean)
  content["statistics"]["covariance"] = Array(bad.covariance)
  with pytest.raises(Rejected, match=why) as error:
    screen_statistics(answer_of(content), WIDTH, 100)
  assert error.value.status.outcome == "rejected" and "\n" not in str(error.value)


def test_other_records_are_rejected():
  more = statistics_content(GOOD)
  more["config2"] = more["config"]
  for content in (RecordDict(), more):
    with pytest.raises(Rejected, match="expected the records"):
      screen_statistics(answer_of(content), WIDTH, 100)
  more = statistics_content(GOOD)
  more["statistics"]["median"] = Array(GOOD.mean)
  with pytest.raises(Rejected, match=r"the arrays 'mean' and 'covariance'; got .*median"):
    screen_statistics(answer_of(more), WIDTH, 100)


def test_an_error_is_the_reason():
  sent = Message(RecordDict(), 2, STATISTICS)
  with pytest.raises(Rejected, match="SiteError: none") as error:
    screen_statistics(Message(Error(2, "SiteError: none"), reply_to=sent), WIDTH, 100)
  assert error.value.status.outcome == "failed"

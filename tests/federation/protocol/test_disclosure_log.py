"""The record of what leaves: before it leaves, whole, never dropped; and what errors tell."""

import json
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from afspl_jax.config.experiment import Fed
from afspl_jax.errors import UserError
from afspl_jax.federation import strategies
from afspl_jax.federation.client.client_app import SiteApp
from afspl_jax.federation.contracts import SiteError
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.protocol.disclosure_log import DisclosureLog, LoggedApp
from afspl_jax.federation.server.rounds import Plan
from afspl_jax.federation.server.server_app import run_local
from afspl_jax.federation.transport.local_grid import LocalGrid
from afspl_jax.federation.transport.site_executor import call_app
from afspl_jax.flower_app import client_app
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.storage.run_lines import WIRE, read_lines
from tests.federation.least_squares import CLIENTS, LeastSquares, evaluate, init_params

CAPTION = "a patient with a broken arm"


def ask(folder, trainer=None, kind=wire.TRAIN, app=None):
  """The answer to one message, through the record of a folder."""
  params, trainer = init_params(), trainer or LeastSquares()
  app = app or SiteApp(trainer, params)
  record = DisclosureLog(folder, params, sync=True)
  grid = LocalGrid(LoggedApp(app, record, trainer.site), 1)
  config = ConfigRecord({wire.STRUCTURE: wire.structure_digest(params), wire.ROUND: 7})
  content = RecordDict({wire.ARRAYS: wire.pack(params), wire.CONFIG: config})
  (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], kind)])
  return reply


def logged(folder):
  return [line for line in read_lines(folder / WIRE) if "leaves" not in line]


def test_a_line_says_what_left_and_proves_it(tmp_path):
  reply = ask(tmp_path)
  (line,) = logged(tmp_path)
  assert (line["round"], line["client"], line["type"]) == (7, "site_00", "train")
  assert line["sha256"] == reply.metadata.message_id  # by which Flower's server knows it
  assert line["bytes"] == wire.record_bytes(reply)
  assert line["records"]["metrics"]["entries"] == dict(reply.content["metrics"])
  arrays = line["records"]["arrays"]
  assert arrays["entries"]["flat"]["shape"] == list(reply.content["arrays"]["flat"].shape)
  assert arrays["rows"] == [1, 3, 2, 1]  # of two biases, a kernel, two prompts, a scale
  records = [wire.record_bytes(record) for record in reply.content.values()]
  assert [held["bytes"] for held in line["records"].values()] == records


@pytest.mark.parametrize("error", [KeyError, OSError, ValueError, RuntimeError])
def test_of_an_error_only_the_kind_leaves(tmp_path, error, caplog):
  def app(message, context):
    raise error(f"/data/{CAPTION}.png")

  reply = ask(tmp_path, app=app)
  wanted = f"SiteError: {error.__name__}; the site's own log has the rest"
  assert reply.error.reason == wanted and CAPTION in caplog.text
  (line,) = logged(tmp_path)
  assert line["error"]["reason"] == wanted and "records" not in line
  assert CAPTION not in (tmp_path / WIRE).read_text()


def test_an_error_about_what_the_server_sent_tells_it_what(tmp_path):
  app = SiteApp(LeastSquares(), {"other": init_params()["scale"]})
  reply = ask(tmp_path, app=app)
  assert reply.error.reason.startswith("WireError: structure of the params: this site has")


def test_what_is_asked_and_not_known_is_on_record_too(tmp_path):
  assert ask(tmp_path, kind="train.secrets").has_error()
  assert [line["type"] for line in logged(tmp_path)] == ["train.secrets"]


def test_half_a_line_is_cut_and_what_left_stays(tmp_path):
  ask(tmp_path)
  first = logged(tmp_path)
  with open(tmp_path / WIRE, "ab") as file:
    file.write(b'{"round": 8, "client": "s\xc3')
  ask(tmp_path)
  assert logged(tmp_path)[:1] == first and len(logged(tmp_path)) == 2


def run(path: Path, rounds: int) -> None:
  with RunFolder.open(path, {}) as folder:
    checkpoints = Checkpoints(folder.path / "checkpoints")
    fed = Fed(rounds=rounds, clients_per_round=CLIENTS)
    start, strategy = init_params(), strategies.get_strategy("fedavg")
    plan = Plan(start, strategy, fed, 0, folder, checkpoints, evaluate)
    try:
      run_local(plan, LeastSquares(), CLIENTS)
    finally:
      checkpoints.close()


def test_a_round_that_is_repeated_left_twice(tmp_path):
  run(tmp_path, 2)
  before = logged(tmp_path)
  with RunFolder.open(tmp_path, {}) as folder:
    folder.rewind(1)
  assert logged(tmp_path) == before and {line["round"] for line in before} == {0, 1, 2}
  run(tmp_path, 3)
  assert logged(tmp_path)[: len(before)] == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_what_cannot_be_noted_does_not_leave(tmp_path):
  params, trainer = init_params(), LeastSquares()
  record = DisclosureLog(tmp_path, params, sync=True)
  (tmp_path / WIRE).symlink_to("/dev/full")
  grid = LocalGrid(LoggedApp(SiteApp(trainer, params), record, trainer.site), 1)
  terms = ConfigRecord({wire.TERMS: json.dumps({})})
  message = Message(RecordDict({wire.CONFIG: terms}), grid.get_node_ids()[0], wire.HELLO)
  with pytest.raises(UserError, match=r"wire.jsonl: expected to write to it; .* No space left"):
    grid.push_messages([message])
  assert grid.pull_messages([message.metadata.message_id]) == []


def test_a_site_that_cannot_note_what_leaves_ends():
  app = ClientApp()

  @app.query("hello")
  def hello(message, context):
    raise UserError("wire.jsonl: expected to write to it")

  with pytest.raises(UserError, match="expected to write"):
    call_app(app, Message(RecordDict(), 2, wire.HELLO), Context(1, 2, {}, RecordDict(), {}))


def test_flowers_own_way_in_hides_what_stops_a_site(tmp_path):
  missing = str(tmp_path / "patients.py")
  given = {"config": missing, "overrides": "", "workdir": str(tmp_path)}
  context = Context(1, 2, {"partition-id": 0}, RecordDict(), given)
  message = Message(RecordDict(), 2, wire.HELLO)
  with pytest.raises(SiteError, match=r"^UserError before the site could answer") as error:
    client_app(message, context)
  assert error.value.__cause__ is None and missing not in str(error.value)


class Full(LeastSquares):
  """Cannot keep its state."""

  def train(self, params, client, round):
    raise UserError(f"/data/{CAPTION}: expected to write the state; got: No space left")


def test_what_the_user_of_a_host_must_do_ends_it_in_one_line_and_is_not_sent(tmp_path, caplog):
  params, trainer = init_params(), Full()
  app = LoggedApp(
    SiteApp(trainer, params), DisclosureLog(tmp_path, params, sync=True), trainer.site
  )
  config = ConfigRecord({wire.STRUCTURE: wire.structure_digest(params), wire.ROUND: 1})
  content = RecordDict({wire.ARRAYS: wire.pack(params), wire.CONFIG: config})
  for answer in (LocalGrid(app, 1).push_messages, lambda messages: app(messages[0], _context())):
    with pytest.raises(UserError, match=f"{CAPTION}: expected to write the state"):
      answer([Message(content, 2, wire.TRAIN, group_id="1")])
  assert caplog.text == "" and not (tmp_path / WIRE).exists()


def _context():
  return Context(1, 2, {"partition-id": 0}, RecordDict(), {})

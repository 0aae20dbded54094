"""The closed list of what may leave a client, by the settings of a run.

Whatever a client's answer holds and this list does not is a leak until someone has said here what
it is and why it leaves. `afspl audit` holds a run's record of departures (wire_record.py) against
it, `tests/federation/test_privacy.py` what really travelled, and docs/audit.md shows it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from afspl_jax.config.experiment import Experiment
from afspl_jax.federation.protocol.logged_values import FORMS, Line, said

HELLO, TRAIN = "query.hello", "train"
FLAT = "flat"  # the array of a record in which leaves are packed

# Errors whose text may leave: it is made of what the server sent and of agreed settings, or is
# ours to the letter. Of all others the server learns the kind.
FAULTS = ("WireError", "SiteError", "PartyError", "FloatingPointError")

# Leaves of the prompter that travel, by the first part of their names; "local" is none of them.
LEAVES = {
  "pool": "candidate prompts, their keys, and what makes the query",
  "visual_prompt": "the prompt of all images",
  "textual_prompt": "the prompt of all instructions",
  "fusion": "the network that weighs the prompts",
  "mapper": "what maps CLIP's vision tokens into T5's space",
}


@dataclass(frozen=True)
class Entry:
  """One thing that may leave."""

  message: str  # type of the messages that it is in
  record: str  # of the message
  name: str  # in the record; "{i}" stands for the number of a prompt in the pool
  form: str  # how its value looks, by its name in FORMS
  content: str  # what it says of the client
  purpose: str  # why it leaves
  where: Callable[[Experiment], bool] = lambda config: True
  only: str = ""  # `where`, in words


_OPEN = "neither privacy.dp nor secure.aggregation"
_PRIVATE = "privacy.dp or secure.aggregation"
_SECURE = "secure.aggregation"
_TOLD = "no privacy.dp, privacy.example_clip or secure.aggregation"
_FINITE = "mean over the round's finite local steps"


def _open(config: Experiment) -> bool:
  """Whether the server sees each client's own update, as it came out of local training."""
  return config.privacy.dp == "none" and not config.secure.aggregation


def _told(config: Experiment) -> bool:
  """Whether metrics of local training leave, which are of the examples, without noise."""
  return _open(config) and not config.privacy.example_clip


def _private(config: Experiment) -> bool:
  return not _open(config)


def _secure(config: Experiment) -> bool:
  return config.secure.aggregation


def _hidden(query: str, name: str, content: str, purpose: str) -> Entry:
  return Entry(f"query.{query}", "secure", name, "bytes", content, purpose, _secure, _SECURE)


def _weight(message: str, record: str, purpose: str, where, only: str) -> tuple[Entry, Entry]:
  name, what = "num-examples", "how many examples it trains on"
  return (
    Entry(message, record, name, "count", what, purpose, _open, _OPEN),
    Entry(message, record, name, "one", "nothing", "all weigh the same", where, only),
  )


def _metric(name: str, content: str, purpose: str = "a curve of the run") -> Entry:
  return Entry(TRAIN, "metrics", name, "number", content, purpose, _told, _TOLD)


ENTRIES = (
  Entry(HELLO, "config", "site", "site", "the site's name", "rounds and files know it by its name"),
  *_weight(HELLO, "config", "fed.selection=size", _private, _PRIVATE),
  Entry(
    TRAIN,
    "arrays",
    "flat",
    "floats",
    "rows of the shared leaves after local training",
    "what is learned together",
    lambda config: not config.secure.aggregation,
    "no secure.aggregation",
  ),
  Entry(
    TRAIN,
    "arrays",
    "rows",
    "rows",
    "a bit for each row: whether it was sent",
    "a sparse uplink",
    lambda config: not config.secure.aggregation and config.uplink.select != "dense",
    "no secure.aggregation; not uplink.select=dense",
  ),
  Entry(
    TRAIN,
    "control",
    "flat",
    "floats",
    "what was added to the client's control: a mean gradient",
    "corrects drift",
    lambda config: _open(config) and config.fed.strategy.partition(":")[0] == "scaffold",
    "fed.strategy=scaffold",
  ),
  Entry(
    TRAIN,
    "config",
    "structure",
    "structure",
    "a hash of the names, shapes and dtypes of the shared leaves",
    "peers that differ in it exchange nothing",
  ),
  *_weight(
    TRAIN,
    "metrics",
    "its weight in the average",
    lambda config: _private(config) and not _secure(config),
    "privacy.dp; no secure.aggregation",
  ),
  _metric("loss", f"training loss, {_FINITE}", "a curve; fed.selection=power_of_choice"),
  _metric("first_loss", "training loss of the first local batch", "fed.strategy=qfedavg"),
  _metric("balance", f"load-balancing loss of the pool, {_FINITE}"),
  _metric("contrast", f"contrastive loss, {_FINITE}"),
  _metric("grad_norm", f"norm of the gradient, {_FINITE}"),
  _metric("prompts_chosen", "prompts chosen from the pool, mean over samples"),
  _metric("nonfinite_steps", "local steps without a finite loss and gradient"),
  _metric("pool_usage_{i}", "share of samples that chose prompt i of the pool"),
  _hidden("secure_keys", "keys", "public keys, made for the round", "who shares which mask"),
  _hidden(
    "secure_shares",
    "sealed",
    "shares of the round's secrets, each sealed for another client",
    "masks of clients that are lost can be taken out",
  ),
  _hidden(
    "secure_unmask",
    "shares",
    "of a client whose update came, a share of its own mask; of a lost one, of its others",
    "the sum without masks",
  ),
  Entry(
    TRAIN,
    "arrays",
    "masked",
    "masked",
    "rows of the shared leaves under masks: uniform numbers but in the sum of all",
    "what is learned together",
    _secure,
    _SECURE,
  ),
  Entry(
    TRAIN,
    "metrics",
    "within_clip",
    "number",
    "0 or 1: whether the update was within the bound",
    "the next round's bound",
    lambda config: (
      config.privacy.dp != "none" and config.privacy.clipping == "adaptive" and not _secure(config)
    ),
    "privacy.dp, privacy.clipping=adaptive; no secure.aggregation",
  ),
)


def allow_list(config: Experiment) -> dict[tuple[str, str, str], Entry]:
  """What may leave a client of a run, by message type, record and name."""
  return {
    (entry.message, entry.record, entry.name.format(i=i)): entry
    for entry in ENTRIES
    if entry.where(config)
    for i in range(config.prompter.pool if "{i}" in entry.name else 1)
  }


def not_allowed(
  line: Line, entries: Mapping[tuple[str, str, str], Entry]
) -> Iterator[tuple[str, str]]:
  """What of a departure is not on the list: where in the message, and what it is.

  Args:
    line: of wire.jsonl, with `leaves`, the form that its "structure" names.
    entries: the list, from `allowed`.

  Yields:
    Both as texts.
  """
  kind = line["type"]
  if kind not in {message for message, *_ in entries}:
    yield kind, "a message type that is not on the list"
  if error := line.get("error"):
    fault, _, _ = error["reason"].partition(": ")
    if fault not in FAULTS:
      yield f"{kind}  error", f"a text of another kind than {', '.join(FAULTS)}: {said(error)}"
  for record, held in line.get("records", {}).items():
    for name, value in held["entries"].items():
      place, entry = f"{kind}  {record}  {name}", entries.get((kind, record, name))
      if entry is None:
        yield place, f"not on the list: {said(value)}"
      elif not (form := FORMS[entry.form]).fits(value, line, record):
        yield place, f"expected {form.words}; got {said(value)}"
    for leaf, sent in zip(line.get("leaves", ()), held.get("rows") or (), strict=False):
      if sent and leaf["name"].split("/")[0] not in LEAVES:
        yield f"{kind}  {record}  {leaf['name']}", "a leaf that is not on the list"


def markdown() -> str:
  """The list as tables, for docs/audit.md."""
  rows = ["| message | record | name | form | content | purpose | only with |"]
  rows += ["| --- " * 7 + "|"]
  for entry in ENTRIES:
    cells = (f"`{entry.message}`", entry.record, f"`{entry.name}`", FORMS[entry.form].words)
    rows.append(f"| {' | '.join((*cells, entry.content, entry.purpose, entry.only))} |")
  rows += ["", "| leaves | content |", "| --- | --- |"]
  rows += [f"| `{name}` | {content} |" for name, content in LEAVES.items()]
  return "\n".join(rows) + "\n"

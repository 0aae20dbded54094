"""The allow-list: everything that a client may send, by the settings of a run.

Anything else in a client's reply counts as a leak until this list says what it is and why it is
sent. `afspl audit` compares a run's disclosure log (disclosure_log.py) with the list,
`tests/federation/test_privacy.py` compares the messages themselves, and docs/audit.md shows it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from afspl_jax.config.experiment import Experiment, Fed
from afspl_jax.config.routing import site_prompts
from afspl_jax.federation.protocol.logged_values import FORMS, LogLine, describe_value
from afspl_jax.models.prompter.local import is_local, local_patterns

HELLO, STATISTICS, TRAIN = "query.hello", "query.statistics", "train"
FLAT = "flat"  # the array of a record in which leaves are packed

# Types of errors whose text may be sent: it has only what the server sent, agreed settings, and our
# own words. Of any other error the server learns only the type.
ERROR_TYPES = ("WireError", "SiteError", "SiteSpent", "PartyError", "FloatingPointError")
_EARLIER_ERROR_TYPES = ("SiteFault",)  # in the logs of earlier versions

# Leaves of the prompter that travel, by the first part of their names; "local" is not one of them.
LEAVES = {
  "pool": "candidate prompts, their keys, and the query network",
  "visual_prompt": "the shared prompt for images",
  "textual_prompt": "the shared prompt for instructions",
  "sites": "the prompts of sites",
  "fusion": "the network that weights the prompts",
  "mapper": "the network that maps CLIP's vision tokens into T5's space",
}


@dataclass(frozen=True)
class AllowedEntry:
  """One entry that a client may send."""

  message: str  # message type
  record: str  # record of the message
  name: str  # in the record; "{i}" stands for the number of a prompt in the pool
  form: str  # of the value, by its name in FORMS
  content: str  # what it reveals about the client
  purpose: str  # why it is sent
  where: Callable[[Experiment], bool] = lambda config: True
  only: str = ""  # describes `where`


_OPEN = "neither privacy.dp nor secure.aggregation"
_PRIVATE = "privacy.dp or secure.aggregation"
_SECURE = "secure.aggregation"
_REPORTED = "no privacy.dp, privacy.example_clip or secure.aggregation"
_FINITE = "mean over the round's finite local steps"


def _open(config: Experiment) -> bool:
  """Whether the server sees each client's update as local training made it."""
  return config.privacy.dp == "none" and not config.secure.aggregation


def _reported(config: Experiment) -> bool:
  """Whether metrics of local training are sent; they depend on the examples and have no noise."""
  return _open(config) and not config.privacy.example_clip


def _routed(config: Experiment) -> bool:
  """Whether the keys of sites come from statistics of the clients' images."""
  return site_prompts(config) > 0


def _private(config: Experiment) -> bool:
  return not _open(config)


def _secure(config: Experiment) -> bool:
  return config.secure.aggregation


def _hidden(message: str, name: str, content: str, purpose: str) -> AllowedEntry:
  return AllowedEntry(message, "secure", name, "bytes", content, purpose, _secure, _SECURE)


def _statistic(record: str, name: str, form: str, content: str) -> AllowedEntry:
  purpose, only = "keys that find the site's images", "routing by site"
  return AllowedEntry(STATISTICS, record, name, form, content, purpose, _routed, only)


def _weight(
  message: str, record: str, purpose: str, where, only: str
) -> tuple[AllowedEntry, AllowedEntry]:
  name, what = "num-examples", "the number of its training examples"
  return (
    AllowedEntry(message, record, name, "count", what, purpose, _open, _OPEN),
    AllowedEntry(message, record, name, "one", "nothing", "all weights are equal", where, only),
  )


def _metric(name: str, content: str, purpose: str = "a curve of the run") -> AllowedEntry:
  return AllowedEntry(TRAIN, "metrics", name, "number", content, purpose, _reported, _REPORTED)


ENTRIES = (
  AllowedEntry(HELLO, "config", "site", "site", "the site's name", "names it in rounds and files"),
  *_weight(HELLO, "config", "fed.selection=size", _private, _PRIVATE),
  _statistic("config", "num-examples", "count", "the number of its training images"),
  _statistic("statistics", "mean", "mean", "the mean joint feature of its training images"),
  _statistic(
    "statistics", "covariance", "covariance", "the covariance of the joint features of these images"
  ),
  AllowedEntry(
    TRAIN,
    "arrays",
    "flat",
    "floats",
    "rows of the shared leaves after local training",
    "the shared model",
    lambda config: not config.secure.aggregation,
    "no secure.aggregation",
  ),
  AllowedEntry(
    TRAIN,
    "arrays",
    "rows",
    "rows",
    "for each row, whether it was sent",
    "a sparse uplink",
    lambda config: (
      not config.secure.aggregation and (config.uplink.select != "dense" or _routed(config))
    ),
    "no secure.aggregation; not uplink.select=dense, unless routing by site",
  ),
  AllowedEntry(
    TRAIN,
    "control",
    "flat",
    "floats",
    "the change of the client's control: a mean gradient",
    "corrects client drift",
    lambda config: _open(config) and config.fed.strategy.partition(":")[0] == "scaffold",
    "fed.strategy=scaffold",
  ),
  AllowedEntry(
    TRAIN,
    "config",
    "structure",
    "structure",
    "a hash of the names, shapes and dtypes of the shared leaves",
    "server and site check that they have the same model",
  ),
  *_weight(
    TRAIN,
    "metrics",
    "its weight in the average",
    lambda config: _private(config) and not _secure(config),
    "privacy.dp; no secure.aggregation",
  ),
  _metric("loss", f"training loss, {_FINITE}", "a curve of the run; fed.selection=power_of_choice"),
  _metric("first_loss", "training loss of the first local batch", "fed.strategy=qfedavg"),
  _metric("balance", f"load-balancing loss of the pool, {_FINITE}"),
  _metric("contrast", f"contrastive loss, {_FINITE}"),
  _metric("grad_norm", f"norm of the gradient, {_FINITE}"),
  _metric("prompts_chosen", "prompts chosen from the pool, mean over samples"),
  _metric("nonfinite_steps", "local steps without a finite loss and gradient"),
  _metric("pool_usage_{i}", "share of samples that chose prompt i of the pool"),
  _hidden("query.secure_keys", "keys", "public keys, made for the round", "clients agree on masks"),
  _hidden(
    "query.secure_keys", "identity", "the site's public identity key", "to check its signatures"
  ),
  _hidden(
    "query.secure_keys",
    "signature",
    "a signature over the round's keys and the site's name",
    "the server cannot replace the keys",
  ),
  _hidden(
    "query.secure_shares",
    "sealed",
    "shares of the round's secrets, each sealed for another client",
    "the masks of clients that drop out can be removed",
  ),
  _hidden(
    "query.secure_confirm",
    "signature",
    "a signature over the set of clients whose update is in the sum, as the server named them",
    "the server cannot name different sets to different clients",
  ),
  _hidden(
    "query.secure_unmask",
    "shares",
    "a share of each client's self mask; for a client that dropped out, of its pairwise masks",
    "the masks are removed from the sum",
  ),
  _hidden(
    TRAIN,
    "signature",
    "a signature over the set of clients that shared secrets, as the server named them",
    "the server cannot name different sets to different clients",
  ),
  AllowedEntry(
    TRAIN,
    "arrays",
    "masked",
    "masked",
    "masked rows of the shared leaves: random numbers, except in the sum over all clients",
    "the shared model",
    _secure,
    _SECURE,
  ),
  AllowedEntry(
    TRAIN,
    "metrics",
    "within_clip",
    "number",
    "0 or 1: whether the update was within the clipping bound",
    "adapts the bound of the next round",
    lambda config: (
      config.privacy.dp != "none" and config.privacy.clipping == "adaptive" and not _secure(config)
    ),
    "privacy.dp, privacy.clipping=adaptive; no secure.aggregation",
  ),
)


def allow_list(config: Experiment) -> dict[tuple[str, str, str], AllowedEntry]:
  """The entries that a run's settings allow, by message type, record and name."""
  return {
    (entry.message, entry.record, entry.name.format(i=i)): entry
    for entry in ENTRIES
    if entry.where(config)
    for i in range(config.prompter.pool if "{i}" in entry.name else 1)
  }


def not_allowed(
  line: LogLine,
  entries: Mapping[tuple[str, str, str], AllowedEntry],
  fed: Fed,
) -> Iterator[tuple[str, str]]:
  """What a message has that is not on the list.

  Args:
    line: of wire.jsonl, with `leaves`, the leaves of its "structure".
    entries: the list, from `allow_list`.
    fed: the run's settings, which say what leaves stay at each client.

  Yields:
    The place in the message, and what is wrong there.
  """
  kind, local = line["type"], local_patterns(fed)
  if kind not in {message for message, *_ in entries}:
    yield kind, "a message type that is not on the list"
  if error := line.get("error"):
    error_type, _, _ = error["reason"].partition(": ")
    if error_type not in (*ERROR_TYPES, *_EARLIER_ERROR_TYPES):
      wanted = ", ".join(ERROR_TYPES)
      yield f"{kind}  error", f"expected an error of type {wanted}; got {describe_value(error)}"
  for record, held in line.get("records", {}).items():
    for name, value in held["entries"].items():
      place, entry = f"{kind}  {record}  {name}", entries.get((kind, record, name))
      if entry is None:
        yield place, f"not on the list: {describe_value(value)}"
      elif not (form := FORMS[entry.form]).fits(value, line, record):
        yield place, f"expected {form.description}; got {describe_value(value)}"
    for leaf, sent in zip(line.get("leaves", ()), held.get("rows") or (), strict=False):
      stays = is_local(leaf["name"], local) or leaf["name"].split("/")[0] not in LEAVES
      if sent and stays:
        yield f"{kind}  {record}  {leaf['name']}", "a leaf that is not on the list"


def allow_list_markdown() -> str:
  """The list as tables, for docs/audit.md."""
  rows = ["| message | record | name | form | content | purpose | only with |"]
  rows += ["| --- " * 7 + "|"]
  for entry in ENTRIES:
    cells = (f"`{entry.message}`", entry.record, f"`{entry.name}`", FORMS[entry.form].description)
    rows.append(f"| {' | '.join((*cells, entry.content, entry.purpose, entry.only))} |")
  rows += ["", "| leaves | content |", "| --- | --- |"]
  rows += [f"| `{name}` | {content} |" for name, content in LEAVES.items()]
  return "\n".join(rows) + "\n"

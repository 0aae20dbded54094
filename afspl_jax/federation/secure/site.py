"""A site's half of secure aggregation, as answers to Flower's messages."""

import math
from collections.abc import Callable

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from afspl_jax.config.experiment import Experiment
from afspl_jax.federation.contracts import WITHIN, PartyError, Update
from afspl_jax.federation.protocol import wire
from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.identity import Identity, run_identities
from afspl_jax.federation.secure.party import Party
from afspl_jax.federation.secure.terms import Terms, terms_of
from afspl_jax.types import Params


class SecureSite:
  """The sites of this process. Secrets are only in its memory, and only of the current session.

  Args:
    terms: what all have agreed on.
    identity_of: the identity of a site of this process; by default one that is made for the run,
      for sites that are all in this process.
  """

  def __init__(self, terms: Terms, identity_of: Callable[[str], Identity] | None = None):
    self._terms, self._identity_of = terms, identity_of or run_identities()
    self._parties: dict[int, Party] = {}
    self._used: dict[int, set[bytes]] = {}  # names of sessions, by client
    self._summed: dict[tuple[int, int], bytes] = {}  # by client and round, the sites of its sum

  def register(
    self, app: ClientApp, client_of: Callable[[Context], int], site_of: Callable[[int], str]
  ) -> None:
    """Lets the app answer the stages other than training."""

    def answer(message: Message, record: ConfigRecord) -> Message:
      return Message(RecordDict({messages.SECURE: record}), reply_to=message)

    @app.query(messages.KEYS)
    def keys(message: Message, context: Context) -> Message:
      client = client_of(context)
      session = messages.read_session(message.content)
      used = self._used.setdefault(client, set())
      if session.name in used:
        raise PartyError("expected a new session; got one that was used before")
      used.add(session.name)
      identity, summed = (
        self._identity_of(site_of(client)),
        self._summed.get((client, session.round)),
      )
      # It replaces the last session's secrets.
      party = self._parties[client] = Party(session, self._terms.rules, identity, summed)
      return answer(message, messages.keys_record(party.advertise()))

    @app.query(messages.SHARES)
    def shares(message: Message, context: Context) -> Message:
      party = self._party(client_of(context), message.content)
      introduction = messages.read_introduction(message.content)
      return answer(message, messages.sealed_record(party.share(*introduction)))

    @app.query(messages.CONFIRM)
    def confirm(message: Message, context: Context) -> Message:
      party = self._party(client_of(context), message.content)
      signature = party.confirm(*messages.read_survivors(message.content))
      return answer(message, messages.signature_record(signature))

    @app.query(messages.UNMASK)
    def unmask(message: Message, context: Context) -> Message:
      client = client_of(context)
      party = self._party(client, message.content)
      shares = party.unmask(messages.read_signatures(message.content))
      assert party.summed is not None, "it confirmed the set"
      self._summed[client, party.session.round] = party.summed
      return answer(message, messages.shares_record(shares))

  def check_request(self, client: int, round: int, content: RecordDict) -> None:
    """Checks a message that asks to train, before any work is done.

    Raises:
      WireError: it does not say how to mask the update.
      PartyError: it belongs to another session or round.
    """
    if messages.SECURE not in content:
      raise wire.WireError(
        f"expected the record {messages.SECURE!r}: this site sends only masked updates"
        " (secure.aggregation); the server asked for a plain one"
      )
    party = self._party(client, content)
    if party.session.round != round:
      raise PartyError(f"expected round {party.session.round} of the session; got {round}")
    messages.read_forwarded(content)

  def masked_reply(
    self, client: int, content: RecordDict, update: Update, start: Params, bound: float | None
  ) -> RecordDict:
    """The reply to a message that asked to train: the masked update and nothing else.

    Args:
      client: its index.
      content: the message's.
      update: what the site may send; its metrics are used if they are counted.
      start: the global params that the site was sent.
      bound: of the update's norm; None: the config's.
    """
    party = self._party(client, content)
    values = wire.sent_values(update.params, start, update.masks)
    quantiser = self._terms.quantiser(len(values), party.clients, bound)
    size = math.sqrt(float(np.square(values).sum()))
    metrics = {WITHIN: size <= quantiser.bound} | update.metrics
    counts = tuple(int(metrics[name]) for name in self._terms.counts)
    weight = update.num_examples if self._terms.weighted else 1
    words = quantiser.encode(values, weight, counts)
    masked = party.mask(words, messages.read_forwarded(content))
    packed = quantiser.pack(masked.words)
    return messages.masked_content(packed, wire.structure_digest(start), masked.signature)

  def _party(self, client: int, content: RecordDict) -> Party:
    party = self._parties.get(client)
    if party is None or messages.session_name(content) != party.session.name:
      raise PartyError("expected the session that this site has keys of; got another")
    return party


def masking_of(
  config: Experiment, identity_of: Callable[[str], Identity] | None = None
) -> SecureSite | None:
  """The site's part in secure aggregation, or None without it; the arguments are SecureSite's."""
  terms = terms_of(config)
  return None if terms is None else SecureSite(terms, identity_of)

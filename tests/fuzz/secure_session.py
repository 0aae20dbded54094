"""A session of secure aggregation with four sites: what the server sends to the first of them."""

import copy
import functools
from typing import Any

import numpy as np
from flwr.app import RecordDict

from afspl_jax.federation.secure import messages
from afspl_jax.federation.secure.coordinator import Introduction
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.identity import run_identities
from afspl_jax.federation.secure.party import Forwarded, Party, Rules

SESSION = Session(b"s" * 16, 3)
RULES = Rules(0.6)
SITES = ("elm", "fir", "oak", "yew")


@functools.cache
def session() -> tuple[dict[str, Party], dict[int, Any], tuple[dict[int, bytes], ...]]:
  """A site before each stage; what all have shown; what others sealed for it, and signatures."""
  identity_of = run_identities()
  parties = {n: Party(SESSION, RULES, identity_of(name)) for n, name in enumerate(SITES)}
  shown = {n: party.advertise() for n, party in parties.items()}
  before = {"query.secure_shares": copy.copy(parties[0])}
  members = list(shown.values())
  of = {n: party.share(n, members) for n, party in parties.items()}
  sealed = {n: of[n][0] for n in range(1, 4)}
  before["train"] = _copied(parties[0])
  agreed: dict[int, bytes] = {}
  for n, party in parties.items():
    forwarded = Forwarded(range(4), {m: of[m][n] for m in parties if m != n})
    agreed[n] = party.mask(np.zeros(9, np.uint32), forwarded).signature
  before["query.secure_confirm"] = _copied(parties[0])
  signatures = {
    n: parties[n].confirm([0, 1, 2], {m: agreed[m] for m in range(3) if m != n}) for n in range(3)
  }
  neighbours = {n: agreed[n] for n in (1, 2)}
  return before | {"query.secure_unmask": parties[0]}, shown, (sealed, signatures, neighbours)


def _copied(party: Party) -> Party:
  return copy.deepcopy(party, _keys_of(party))


def _keys_of(party: Party) -> dict[int, Any]:
  """What a deep copy shares with its original."""
  kept = (*vars(party).values(), party._identity)
  return {id(key): key for key in kept if type(key).__module__.startswith(("cryp", "afspl_jax"))}


def party_before(stage: str) -> Party:
  return _copied(session()[0][stage])


def first_record(stage: str) -> RecordDict:
  record = {
    "keys": lambda: messages.session_record(SESSION),
    "shares": lambda: messages.introduction_record(
      SESSION, Introduction(0, list(session()[1].values()))
    ),
    "train": lambda: messages.forwarded_record(SESSION, Forwarded(range(4), session()[2][0])),
    "confirm": lambda: messages.survivors_record(SESSION, [0, 1, 2], session()[2][2]),
    "unmask": lambda: messages.signatures_record(SESSION, session()[2][1]),
  }[stage]()
  return RecordDict({messages.SECURE: record})

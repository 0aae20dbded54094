"""A whole session of secure aggregation in memory; clients drop out where a test says so."""

import os

import numpy as np

from afspl_jax.federation.secure.coordinator import Coordinator
from afspl_jax.federation.secure.crypto import Session
from afspl_jax.federation.secure.identity import run_identities
from afspl_jax.federation.secure.party import Party, Rules
from afspl_jax.federation.secure.quantise import Quantiser

RULES = Rules(0.6)
STAGES = ("keys", "shares", "train", "confirm", "unmask")
IDENTITY = run_identities()  # of the sites of all sessions


def new_session():
  return Session(os.urandom(16), 3)


class SecureRound:
  """A session with all of its messages."""

  def __init__(self, updates, weights=None, *, rules=RULES, bits=16, bound=1.0, fewest=3):
    self.names = [f"site_{i:02d}" for i in range(len(updates))]
    self.updates = dict(zip(self.names, updates, strict=True))
    self.weights = dict(zip(self.names, weights or [1] * len(updates), strict=True))
    self.session = new_session()
    self.parties = {name: Party(self.session, rules, IDENTITY(name)) for name in self.names}
    self.server = Coordinator(self.session, rules, fewest)
    most = max(self.weights.values())
    self.quantiser = Quantiser(len(updates[0]), bound, bits, len(updates), most)

  def keys(self, lost=()):
    self.shown = {n: p.advertise() for n, p in self.parties.items() if n not in lost}
    self.introduce(self.shown)

  def introduce(self, shown):
    self.introductions = self.server.introduce(shown)
    self.names_in = sorted(self.introductions)  # by number

  def shares(self, lost=()):
    self.sealed = {
      n: self.parties[n].share(*self.introductions[n]) for n in self.introductions if n not in lost
    }
    self.forwarded = self.server.forward(self.sealed)

  def train(self, lost=()):
    self.words = {
      n: self.quantiser.encode(self.updates[n], self.weights[n])
      for n in self.forwarded
      if n not in lost
    }
    masked = {n: self.parties[n].mask(w, self.forwarded[n]) for n, w in self.words.items()}
    self.masked = {n: each.words for n, each in masked.items()}
    self.survivors = self.server.settle({n: each.signature for n, each in masked.items()})

  def confirm(self, lost=()):
    self.signatures = {}
    if not self.server.needs_signatures() and not lost:
      return
    self.signatures = self.server.confirmed(
      {
        n: self.parties[n].confirm(self.survivors, self.server.agreed(n))
        for n in self.masked
        if n not in lost
      }
    )

  def unmask(self, lost=()):
    signers = [self.names_in[number] for number in self.signatures or self.survivors]
    self.revealed = {n: self.parties[n].unmask(self.signatures) for n in signers if n not in lost}
    total = np.sum(list(self.masked.values()), axis=0, dtype=self.quantiser.word)
    self.server.unmask(total, self.revealed)
    self.sum = self.quantiser.decode(total, len(self.masked))

  def go(self, until="unmask", **lost):
    """Runs the stages up to one; `lost` has, by stage, the clients that drop out there."""
    gone = set()
    for stage in STAGES[: STAGES.index(until) + 1]:
      gone |= {self.names[i] for i in lost.get(stage, ())}
      getattr(self, stage)(gone)
    return self

  def plain(self):
    """The plain sum of the updates that arrived."""
    return sum(self.weights[n] * self.updates[n] for n in self.masked)

  def bound_on_error(self):
    return sum(self.weights[n] for n in self.masked) * self.quantiser.step / 2


def some_updates(clients, size=9, seed=0, norm=0.9):
  rng = np.random.default_rng(seed)
  updates = rng.normal(size=(clients, size))
  return list(norm * updates / np.linalg.norm(updates, axis=1, keepdims=True))

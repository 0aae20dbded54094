"""A server claims to some sites that others did not share, so that fewer masks hide them."""

import pytest

from afspl_jax.federation.contracts import PartyError
from afspl_jax.federation.secure.members import SHARED, SURVIVORS, sign_set
from afspl_jax.federation.secure.party import Forwarded, Rules
from tests.federation.secure.secure_round_in_memory import SecureRound, some_updates


def mask(secure, number, told):
  """The masked update of a client that is told who shared."""
  name = secure.names[number]
  sealed = {peer: text for peer, text in secure.forwarded[name].sealed.items() if peer in told}
  words = secure.quantiser.encode(secure.updates[name], 1)
  return secure.parties[name].mask(words, Forwarded(sorted(told), sealed))


@pytest.mark.parametrize("clients", [5, 10, 20, 30])
def test_no_group_masks_among_itself_that_is_smaller_than_a_sum_may_be(clients):
  """The others would give shares of all self masks: the group's sum would be clear.

  Two sites of five, who are told that nobody shared but them and one that colludes, would do.
  """
  secure = SecureRound(some_updates(clients)).go("shares")
  colluding, least = clients // 5, secure.server._signers
  assert least + secure.server._threshold > clients + colluding  # a group, and who give shares
  for group in (secure.server._threshold, least - 1):
    victim = group - 1 - colluding
    told = {*range(group - colluding), *range(clients - colluding, clients)}
    assert victim in told and len(told) == group
    with pytest.raises(PartyError, match=f"at least {least} of {clients} clients that share masks"):
      mask(secure, victim, told)
    assert secure.parties[secure.names[victim]]._stage.name == "DONE"  # no second attempt
    secure = SecureRound(some_updates(clients)).go("shares")


def test_a_site_that_is_told_of_fewer_neighbours_is_not_revealed():
  """In a graph that is not complete, all neighbours that it masks with can be dropped.

  Its update would then be clear: its own mask from its other neighbours, and the masks with those
  that are dropped from theirs.
  """
  clients, victim, rules = 20, 6, Rules(0.6, neighbours=4)
  secure = SecureRound(some_updates(clients), rules=rules).go("shares")
  near = secure.server.peers_of(secure.names[victim])
  known, unknown = near[:2], near[2:]
  shown = {i: set(range(clients)) - set(unknown if i == victim else ()) for i in range(clients)}
  signatures = {i: mask(secure, i, shown[i]).signature for i in range(clients)}
  survivors = sorted(set(range(clients)) - set(known))
  assert len(survivors) > secure.server._signers

  def confirm(number, signatures):
    peers = secure.server.peers_of(secure.names[number])
    agreed = {i: signatures[i] for i in peers if i in survivors}
    return secure.parties[secure.names[number]].confirm(survivors, agreed)

  for number in survivors:
    if number in unknown:
      with pytest.raises(PartyError, match="site_06: expected its signature over the sharers"):
        confirm(number, signatures)
      with pytest.raises(PartyError, match="after done"):
        secure.parties[secure.names[number]].unmask({})
    elif number == victim:  # it knows that they did not share
      with pytest.raises(PartyError, match="expected survivors among those that shared"):
        confirm(number, signatures)
    else:
      confirm(number, signatures)


def test_a_site_needs_enough_neighbours_that_share():
  secure = SecureRound(some_updates(20), rules=Rules(0.6, neighbours=4)).go("shares")
  told = set(range(20)) - set(secure.server.peers_of("site_06")[1:])
  with pytest.raises(PartyError, match="at least 3 of this client and its neighbours"):
    mask(secure, 6, told)


def test_a_signature_over_the_sharers_is_none_over_the_survivors():
  secure = SecureRound(some_updates(4)).go("shares")
  party, everyone = secure.parties["site_01"], range(4)
  sharers = mask(secure, 1, everyone).signature
  member, joint = secure.server._members[1], secure.server._joint
  assert member.has_signed(joint, SHARED, everyone, sharers)
  assert not member.has_signed(joint, SURVIVORS, everyone, sharers)
  assert not member.has_signed(joint, SHARED, [0, 1, 2], sharers)
  survivors = sign_set(party._identity, joint, SURVIVORS, everyone)
  assert not member.has_signed(joint, SHARED, everyone, survivors)

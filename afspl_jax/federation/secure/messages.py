"""The messages of secure aggregation, as records of Flower's messages.

Fields of bytes have known lengths: a peer's bytes are compared with the expected length and split;
no field gives the length of another. Keys of identities, signatures and names are in lists.
"""

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from jaxtyping import UInt8

from afspl_jax.federation.protocol import wire
from afspl_jax.federation.protocol.wire import WireError
from afspl_jax.federation.secure.coordinator import Introduction
from afspl_jax.federation.secure.crypto import KEY, SEED, SESSION, Session
from afspl_jax.federation.secure.members import Keys, Member
from afspl_jax.federation.secure.party import SEALED, Forwarded, Masked

SECURE = "secure"  # name of the record
KEYS, SHARES, CONFIRM, UNMASK = "secure_keys", "secure_shares", "secure_confirm", "secure_unmask"
MASKED = "masked"  # array of the ArrayRecord: the masked integers
_SESSION, _PEERS = "session", "peers"
_SIGNED = {"signers": bytes, "signatures": list}
_NUMBER = np.dtype("<u4")  # a client's number as it travels


def session_record(session: Session) -> ConfigRecord:
  """The record that begins a session."""
  return ConfigRecord({_SESSION: session.name, wire.ROUND: session.round})


def read_session(content: RecordDict) -> Session:
  """The session that a message begins.

  Raises:
    WireError: the record is malformed.
  """
  record = _record(content, {_SESSION: bytes, wire.ROUND: int})
  return Session(_cut(record, _SESSION, SESSION, 1)[0], record[wire.ROUND])


def session_name(content: RecordDict) -> bytes:
  """The session that a message names; the caller must check it.

  Raises:
    WireError: it names none.
  """
  name = content.get(SECURE, {}).get(_SESSION)
  if not isinstance(name, bytes):
    raise WireError(f"expected the record {SECURE!r} with a session; got {sorted(content)}")
  return name


def keys_record(member: Member) -> ConfigRecord:
  """What a client shows of itself; the server knows its name."""
  keys = b"".join(member.keys)
  return ConfigRecord({"identity": member.identity, "keys": keys, "signature": member.signature})


def read_keys(content: RecordDict, site: str) -> Member:
  """Parses what a client shows of itself.

  Raises:
    WireError: the record is malformed.
  """
  record = _record(content, {"identity": bytes, "keys": bytes, "signature": bytes})
  keys = Keys(*_cut(record, "keys", KEY, 3))
  return Member(site, record["identity"], keys, record["signature"])


def introduction_record(session: Session, introduction: Introduction) -> ConfigRecord:
  """The record of an introduction."""
  members = introduction.members
  return ConfigRecord(
    {
      _SESSION: session.name,
      "number": introduction.number,
      "sites": [member.site for member in members],
      "identities": [member.identity for member in members],
      "keys": b"".join(b"".join(member.keys) for member in members),
      "signatures": [member.signature for member in members],
    }
  )


def read_introduction(content: RecordDict) -> Introduction:
  """Parses the server's introduction.

  Raises:
    WireError: the record is malformed.
  """
  lists = {"sites": list, "identities": list, "signatures": list}
  record = _record(content, {_SESSION: bytes, "number": int, "keys": bytes} | lists)
  sites = _items(record, "sites", str)
  columns = [_items(record, name, bytes, len(sites)) for name in ("identities", "signatures")]
  keys = _cut(record, "keys", 3 * KEY, len(sites))
  members = [
    Member(site, identity, Keys(text[:KEY], text[KEY : 2 * KEY], text[2 * KEY :]), signature)
    for site, text, identity, signature in zip(sites, keys, *columns, strict=True)
  ]
  return Introduction(record["number"], members)


def sealed_record(sealed: Mapping[int, bytes]) -> ConfigRecord:
  """The sealed shares of a client for its neighbours, in order."""
  return ConfigRecord({"sealed": b"".join(sealed[peer] for peer in sorted(sealed))})


def read_sealed(content: RecordDict, peers: Collection[int]) -> dict[int, bytes]:
  """Parses the sealed shares of a client for each neighbour.

  Raises:
    WireError: the record is malformed.
  """
  record = _record(content, {"sealed": bytes})
  return dict(zip(sorted(peers), _cut(record, "sealed", SEALED, len(peers)), strict=True))


def forwarded_record(session: Session, forwarded: Forwarded) -> ConfigRecord:
  """Who shared, and the sealed shares of a client's neighbours for it."""
  sealed = forwarded.sealed
  return ConfigRecord(
    {
      _SESSION: session.name,
      "shared": _numbers(forwarded.shared),
      _PEERS: _numbers(sealed),
      "sealed": b"".join(sealed[peer] for peer in sorted(sealed)),
    }
  )


def read_forwarded(content: RecordDict) -> Forwarded:
  """Parses who shared, and the sealed shares of a client's neighbours for it.

  Raises:
    WireError: the record is malformed.
  """
  expected = {_SESSION: bytes, "shared": bytes, _PEERS: bytes, "sealed": bytes}
  record = _record(content, expected)
  peers = _read_numbers(record, _PEERS)
  sealed = dict(zip(peers, _cut(record, "sealed", SEALED, len(peers)), strict=True))
  return Forwarded(_read_numbers(record, "shared"), sealed)


def masked_content(
  packed: UInt8[np.ndarray, " bytes"], structure: str, signature: bytes
) -> RecordDict:
  """A client's reply with its masked update."""
  return RecordDict(
    {
      wire.ARRAYS: ArrayRecord({MASKED: Array(packed)}),
      wire.CONFIG: ConfigRecord({wire.STRUCTURE: structure}),
      SECURE: signature_record(signature),
    }
  )


def read_masked(content: RecordDict, size: int, structure: str) -> Masked:
  """Parses a client's masked update of `size` bytes; the words are still packed.

  Raises:
    WireError: the message is malformed.
  """
  expected = {wire.ARRAYS: "ArrayRecord", wire.CONFIG: "ConfigRecord", SECURE: "ConfigRecord"}
  found = {name: type(record).__name__ for name, record in content.items()}
  if found != expected:
    raise WireError(f"expected the records {expected}; got {found}")
  theirs = dict(content[wire.CONFIG])
  if theirs != {wire.STRUCTURE: structure}:
    raise WireError(f"expected params of structure {structure}; got {theirs}")
  if set(content[wire.ARRAYS]) != {MASKED}:
    raise WireError(f"expected the one array {MASKED!r}; got {sorted(content[wire.ARRAYS])}")
  packed = wire.decode_array(MASKED, content[wire.ARRAYS][MASKED], np.dtype(np.uint8), size)
  return Masked(packed, read_signature(content))


def survivors_record(
  session: Session, survivors: Collection[int], signatures: Mapping[int, bytes]
) -> ConfigRecord:
  """The record that asks to confirm whose updates are in the sum (Party.confirm)."""
  signed = _signed_by(signatures)
  return ConfigRecord({_SESSION: session.name, "survivors": _numbers(survivors), **signed})


def read_survivors(content: RecordDict) -> tuple[list[int], dict[int, bytes]]:
  """Parses the survivors, and the signatures of the client's neighbours among them.

  Raises:
    WireError: the record is malformed.
  """
  record = _record(content, {_SESSION: bytes, "survivors": bytes, **_SIGNED})
  return _read_numbers(record, "survivors"), _read_signed(record)


def signature_record(signature: bytes) -> ConfigRecord:
  """A client's signature over the survivors."""
  return ConfigRecord({"signature": signature})


def read_signature(content: RecordDict) -> bytes:
  """Parses a client's signature.

  Raises:
    WireError: the record is malformed.
  """
  return _record(content, {"signature": bytes})["signature"]


def signatures_record(session: Session, signatures: Mapping[int, bytes]) -> ConfigRecord:
  """The record that asks for shares, with the signatures over the survivors."""
  return ConfigRecord({_SESSION: session.name, **_signed_by(signatures)})


def read_signatures(content: RecordDict) -> dict[int, bytes]:
  """Parses the signatures over the survivors, by number of their signer.

  Raises:
    WireError: the record is malformed.
  """
  return _read_signed(_record(content, {_SESSION: bytes, **_SIGNED}))


def shares_record(shares: Mapping[int, bytes]) -> ConfigRecord:
  """The shares that a client gives at the end, in the order of the clients they belong to."""
  return ConfigRecord({"shares": b"".join(shares[of] for of in sorted(shares))})


def read_shares(content: RecordDict, of: Collection[int]) -> dict[int, bytes]:
  """Parses the shares that a client gave, of the clients `of`.

  Raises:
    WireError: the record is malformed.
  """
  record = _record(content, {"shares": bytes})
  return dict(zip(sorted(of), _cut(record, "shares", SEED, len(of)), strict=True))


def _record(content: RecordDict, expected: Mapping[str, type]) -> ConfigRecord:
  """The record SECURE, if it has exactly these values; the message may have more records."""
  record = content.config_records.get(SECURE, {})
  found = {name: type(value) for name, value in record.items()}
  if found != dict(expected):
    say = lambda types: {name: kind.__name__ for name, kind in sorted(types.items())}  # noqa: E731
    raise WireError(f"{SECURE}: expected {say(expected)}; got {say(found)}")
  return record


def _cut(record: ConfigRecord, name: str, size: int, count: int) -> list[bytes]:
  """Splits a value into `count` parts of `size` bytes."""
  value = record[name]
  if len(value) != size * count:
    raise WireError(f"{SECURE}: {name}: expected {size * count} bytes; got {len(value)}")
  return [value[start : start + size] for start in range(0, len(value), size)]


def _items(record: ConfigRecord, name: str, kind: type, count: int | None = None) -> list[Any]:
  """A list of `count` values of one type."""
  value = record[name]
  if not all(type(item) is kind for item in value) or count not in (None, len(value)):
    wanted = f"{'' if count is None else count} {kind.__name__}"
    raise WireError(
      f"{SECURE}: {name}: expected a list of {wanted.strip()}; got {len(value)} items"
    )
  return value


def _signed_by(signatures: Mapping[int, bytes]) -> dict[str, Any]:
  """Signatures by number of their signer, as fields of a record (_SIGNED)."""
  ordered = [signatures[number] for number in sorted(signatures)]
  return {"signers": _numbers(signatures), "signatures": ordered}


def _read_signed(record: ConfigRecord) -> dict[int, bytes]:
  signers = _read_numbers(record, "signers")
  return dict(zip(signers, _items(record, "signatures", bytes, len(signers)), strict=True))


def _numbers(clients: Collection[int]) -> bytes:
  return np.array(sorted(clients), _NUMBER).tobytes()


def _read_numbers(record: ConfigRecord, name: str) -> list[int]:
  """Parses numbers of clients, in ascending order."""
  value = record[name]
  if len(value) % _NUMBER.itemsize:
    raise WireError(f"{SECURE}: {name}: expected whole numbers; got {len(value)} bytes")
  numbers = np.frombuffer(value, _NUMBER).tolist()
  if any(b <= a for a, b in pairwise(numbers)):
    raise WireError(f"{SECURE}: {name}: expected clients in order, each once")
  return numbers

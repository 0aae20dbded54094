"""The identity of a networked site, from the files that it keeps."""

from pathlib import Path

from afspl_jax.errors import UserError
from afspl_jax.federation.secure.identity import Identity
from afspl_jax.federation.secure.roster import ROSTER, Roster
from afspl_jax.federation.transport import site_keys
from afspl_jax.federation.transport.supernode import Credentials


def site_identity(
  site: str, credentials: Credentials | None, folder: Path, given: Path | None
) -> Identity:
  """The identity of a site: the key that it is registered with, and what it knows of the others.

  Args:
    site: its name.
    credentials: its keys; None: it makes a key of its own at its first start.
    folder: for what it keeps: pinned keys, and its own key if it has no credentials.
    given: a roster; None: keys are pinned.

  Raises:
    UserError: a file is damaged, or the roster has another key of this site.
  """
  file = folder / "identity.key" if credentials is None else credentials.key
  if credentials is None and not file.exists():
    site_keys.make_site_key(folder, file.stem)
  site_keys.check_site_key(file)
  roster = Roster(folder / ROSTER) if given is None else Roster(given, given=True)
  identity = Identity(site, site_keys.read_private_key(file), roster)
  known = roster.key_of(site)
  if given is not None and known != identity.public:
    raise UserError(
      f"{given}: expected the public key of {file} for {site}; got"
      f" {'another' if known else 'none'}. Put the line of {site}.pub there, at every site"
    )
  return identity

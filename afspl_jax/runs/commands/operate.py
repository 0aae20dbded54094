"""Commands for those who operate a federation: keys, audit."""

import argparse
import json
from pathlib import Path
from typing import Any

from afspl_jax.runs.commands.groups import CommandGroup


def add_commands(parsers: Any) -> CommandGroup:
  """Adds the commands."""
  group = CommandGroup(parsers, "operate", "afspl keys server fed.example.org")
  keys = group.add("keys", _keys, "make the certificates and keys of a federation")
  kinds = keys.add_subparsers(dest="kind", required=True, metavar="KIND")
  server = kinds.add_parser("server", help="for the server; its ca.crt goes to every site")
  server.add_argument("hosts", nargs="*", help="names and addresses by which sites reach it")
  server.add_argument("--days", type=int, default=3650, help="until the certificates expire")
  site = kinds.add_parser("site", help="for a site; its NAME.pub goes to the server")
  site.add_argument("name", help="the site's name in the federation")
  roster = kinds.add_parser(
    "roster", help="the public keys of all sites as one file, for sites with secure.aggregation"
  )
  roster.add_argument(
    "files", nargs="*", type=Path, metavar="SITE.pub", help="default: FOLDER/sites/*.pub"
  )
  for kind in (server, site, roster):
    kind.add_argument("--folder", type=Path, default=Path("keys"), help="default: keys")

  audit = group.add(
    "audit",
    _audit,
    "list what left each client of a run, by name, and compare it with the allow-list",
    "Reads the disclosure log of each client. Exit status: 0 everything is on the allow-list,"
    " 1 something is not, 2 a user's mistake.",
  )
  audit.add_argument("folder", type=Path, metavar="RUN", help="a run's folder, or a site's own")
  audit.add_argument("--client", default="", metavar="NAME", help="only this client")
  audit.add_argument("--json", action="store_true", help="everything as JSON")
  return group


def _keys(args: argparse.Namespace) -> int:
  from afspl_jax.federation.transport import certificates, site_keys

  if args.kind == "server":
    made = certificates.make_tls_files(args.folder, args.hosts, args.days)
    print(f"give every site a copy of {made.ca}; put each site's NAME.pub into {args.folder}/sites")
    print(f"keep to this host: {made.key}; better still elsewhere: {args.folder / 'ca.key'}")
  elif args.kind == "roster":
    file, sites = site_keys.make_roster(args.folder, args.files)
    print(f"{file}: {', '.join(sites)}. Give every site a copy, for its --roster")
    print(
      "its operators compare it with the fingerprints (ssh-keygen -lf) that the sites tell them"
    )
  else:
    pair = site_keys.make_site_key(args.folder, args.name)
    print(f"give the server a copy of {pair.public}; get its ca.crt and put it into {args.folder}")
    print(f"keep to this host: {pair.private}")
  return 0


def _audit(args: argparse.Namespace) -> int:
  from afspl_jax.reporting.audit import audit_run
  from afspl_jax.reporting.audit_table import format_audit

  found = audit_run(args.folder, args.client)
  print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else format_audit(found))
  return 0 if found["closed"] else 1

"""`python -m benchmarks.soak`: a federation over TLS whose processes are killed and stopped.

It prints what happened, what each process held, and a verdict on every check; all of it is in
soak.json in the folder. The exit status is 1 if a check failed.
"""

import argparse
import secrets
import signal
import sys
import tempfile
from pathlib import Path

from tqdm import tqdm

from afspl_jax.config.experiment import Experiment
from afspl_jax.config.files import load_config
from afspl_jax.storage.run_lines import CLIENTS, read_lines
from benchmarks.soak import checks, report
from benchmarks.soak.federation import TERMINATED, Federation
from benchmarks.soak.schedule import ROLES
from benchmarks.soak.soak import Events, Load, Soak

_BAR = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
_ENDLESS = 1_000_000  # rounds of a soak that ends by time


def main() -> int:
  """Runs a soak, and returns the exit status."""
  args = _arguments()
  workdir = args.workdir or Path(tempfile.mkdtemp(prefix="soak-"))
  workdir.mkdir(parents=True, exist_ok=True)
  if any(workdir.iterdir()):
    print(f"--workdir: expected a new or empty folder; got {workdir}", file=sys.stderr)
    return 2
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))  # ends the federation first
  seed = secrets.randbelow(1 << 31) if args.seed is None else args.seed
  load = Load(seed, args.kills_per_round, args.disturb, args.rounds, 60 * args.minutes)
  print(f"seed {seed}, folder {workdir}", flush=True)
  found, text = _soak(args, load, workdir)
  print(text)
  report.write(workdir / "soak.json", found)
  return int(not found.passed)


def _soak(args: argparse.Namespace, load: Load, workdir: Path) -> tuple[report.Report, str]:
  """Runs a federation under a load; returns what was found, also as text."""
  config = load_config(args.config, "get_config", Experiment)
  config.fed.rounds = load.rounds or _ENDLESS
  sites = [f"client{i:04d}" for i in range(config.data.num_clients)]
  mark, events = secrets.token_hex(8), Events(workdir / "events.jsonl")
  line = (args.bandwidth, args.forwarders)
  with Federation(
    workdir / "hosts", args.config, config.fed.rounds, sites, *line, mark
  ) as federation:
    soak = Soak(federation, mark, load, events)
    with tqdm(total=100, bar_format=_BAR, mininterval=2.0) as bar:
      for done in soak.run():
        bar.set_postfix_str(report.in_one_line(events), refresh=False)
        bar.update(100 * done - bar.n)
    soak.sample()
    statuses = federation.stop()
    lines = read_lines(federation.run / CLIENTS)
    verdicts = [
      checks.ended_well(soak, bool(load.rounds), statuses),
      checks.sites_came_back(sites, lines),
      checks.same_bits(config, soak, workdir / "replay"),
      *checks.nothing_left(federation, mark),
      checks.no_traceback(federation.logs()),
      checks.nothing_grew(report.early_samples(soak.samples), report.late_samples(soak.samples)),
    ]
  found = report.make_report(load.seed, workdir, events, soak.samples, lines, verdicts)
  return found, report.as_text(found, verdicts)


def _arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.soak",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  length = parser.add_mutually_exclusive_group()
  length.add_argument("--rounds", type=int, default=0, help="rounds to train, to the run's own end")
  length.add_argument("--minutes", type=float, default=10.0, help="time to run (default: 10)")
  parser.add_argument("--seed", type=int, help="decides every disturbance (default: random)")
  parser.add_argument(
    "--kills-per-round",
    type=float,
    default=0.2,
    help="kills and stops in a round, on average (default: 0.2)",
  )
  parser.add_argument(
    "--disturb",
    nargs="+",
    choices=ROLES,
    default=ROLES,
    metavar="ROLE",
    help=f"what is killed and stopped: {', '.join(ROLES)} (default: all)",
  )
  parser.add_argument(
    "--bandwidth",
    type=float,
    default=250_000,
    help="bytes per second of each site's line, in each direction; 0: unlimited (default: 250000)",
  )
  parser.add_argument(
    "--forwarders",
    action="store_true",
    help="lines that accept connections while the server is away, and then close them, as port"
    " forwarders and load balancers do; otherwise they are reset",
  )
  parser.add_argument("--workdir", type=Path, help="new folder (default: a temporary one)")
  parser.add_argument(
    "--config",
    type=Path,
    default=Path(__file__).with_name("experiment.py"),
    help="an experiment whose clients train one at a time (fed.cohort=1)",
  )
  return parser.parse_args()


if __name__ == "__main__":
  sys.exit(main())

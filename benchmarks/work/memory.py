"""Peak memory by number of simulated clients: one copy of the models, and kilobytes per client."""

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from afspl_jax.config.experiment import Data, Experiment, Fed, Optim, to_dict
from afspl_jax.federation.client.client_store import ClientStore
from afspl_jax.runs.prepare import enable_compilation_cache, find_inputs, prepare_setup
from afspl_jax.runs.run import in_process, plan_of
from afspl_jax.storage.checkpoints import Checkpoints
from afspl_jax.storage.run_folder import RunFolder
from afspl_jax.types import Example, Source
from benchmarks.bench import Bench
from benchmarks.compare import spread
from benchmarks.process import Child
from benchmarks.table import Line

_COHORT = 8  # clients that a step trains together; activations grow with it
_LARGEST = 10_000


def clients(bench: Bench) -> Iterator[Line]:
  """Measures rounds with all clients on the shapes data; each run is in a new process."""
  numbers = (1, 10, 100) if bench.quick else (1, 10, 100, 1000, _LARGEST)
  peaks: list[int] = []
  for number in (_COHORT, *numbers):
    # Twice: compiling takes more memory than training. Large numbers compile nothing new.
    for _ in range(2 if number <= 100 else 1):
      with tempfile.TemporaryDirectory() as folder:
        task = (number, 100 if bench.quick else _LARGEST, Path(folder))
        with Child("benchmarks.work.memory:one_round", *task) as child:
          peak = child.built.peak
    peaks.append(peak)
    yield Line(
      f"{number:,} client{'s' * (number > 1)}, {min(number, _COHORT)} at a time",
      spread([peak / 2**20]),
      "MiB",
      note=f"{peak / peaks[0]:.2f} × that of {_COHORT} clients",
    )


class Copies:
  """A split whose images repeat until there are `number`."""

  def __init__(self, source: Source, number: int):
    self._source, self._keys = source, source.images()
    self._first = {}
    for i in range(len(source)):
      self._first.setdefault(source[i].image, source[i])
    self._number = number
    self.fingerprint = f"{number} of {source.fingerprint}"
    self.images_fingerprint = f"{number} of {source.images_fingerprint}"

  def __len__(self) -> int:
    return self._number

  def __getitem__(self, index: int) -> Example:
    example = self._first[self._keys[index % len(self._keys)]]
    return Example(f"{index}", f"{index}", example.references, example.question, "site")

  def images(self) -> Sequence[str]:
    """Returns each key once."""
    return [str(i) for i in range(self._number)]

  def load_image(self, key: str) -> Image.Image:
    """Decodes an image."""
    return self._source.load_image(self._keys[int(key) % len(self._keys)])


def one_round(number: int, images: int, folder: Path) -> None:
  """Runs one round of `number` clients with one image each, out of `images`."""
  enable_compilation_cache()
  config = Experiment(
    data=Data(partition="iid", num_clients=number, min_examples=1),
    optim=Optim(batch_size=8, local_steps=1),
    fed=Fed(rounds=1, clients_per_round=number, cohort=min(_COHORT, number)),
  )
  inputs = find_inputs(config, ("train",))
  source = Copies(inputs.sources["train"], images)
  setup = prepare_setup(
    config, inputs._replace(sources={"train": source}), ClientStore(folder / "clients")
  )
  checkpoints = Checkpoints(folder / "checkpoints")
  with RunFolder.open(folder / "run", to_dict(config)) as run:
    in_process(setup, plan_of(setup, run, checkpoints))
    failed = [line for line in run.clients() if line["status"] != "ok"]
  checkpoints.close()
  if failed:
    raise RuntimeError(f"expected all {number} clients to train; got {failed[0]}")

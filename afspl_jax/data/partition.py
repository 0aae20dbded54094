"""Splits examples over clients. Within a split, all examples of one image go to one client."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from afspl_jax.config import Data, choice
from afspl_jax.errors import UserError
from afspl_jax.types import Example

Clients = dict[str, Int[np.ndarray, " examples"]]  # site name -> indices of its examples
Examples = Sequence[Example]
Deal = Callable[[Examples, np.random.Generator], dict[str, str]]  # gives each image its client

_TRIES = 1000
# Leads the seeds of this module. Those of training start with the experiment's seed and have three
# numbers, which NumPy fills up with zeros; ours have four and end in 1.
_TAG = 0x70617274


def partition(splits: Mapping[str, Examples], config: Data, seed: int) -> dict[str, Clients]:
  """Splits the examples of every split by `config.partition`.

  A client's own part of validation and test is drawn as its part of train is, and may be empty.

  Args:
    splits: the examples of "train" and of any others.
    config: `natural` makes a client of each site; `iid` deals images out at random; `dirichlet`
      draws each category's shares over the clients from Dirichlet(alpha) once for all splits
      (Hsu et al. 2019), and deals categories that train lacks out at random; `task` deals images
      with captions out to the first half of the clients and images with questions to the others.
    seed: equal seeds split equally.

  Returns:
    Of each split, the clients: the same names in all.

  Raises:
    UserError: a client would hold fewer than `config.min_examples` examples of train; the natural
      sites are not `config.num_clients`, or others than train's; `task` lacks a side.
  """
  kind = choice("data.partition", config.partition, ("natural", "iid", "dirichlet", "task"))
  if kind == "natural":
    names = _sites(splits, config.num_clients)
  else:
    names = [f"client{i:04d}" for i in range(config.num_clients)]
  if kind == "task":
    _check_task(splits["train"], config.num_clients)

  def parts(split: str, deal: Deal) -> Clients:
    owner = deal(splits[split], _stream(seed, split))
    out: dict[str, list[int]] = {name: [] for name in names}
    for index, example in enumerate(splits[split]):
      out[owner[example.image]].append(index)
    return {name: np.array(indices, int) for name, indices in out.items()}

  # Draw again until every client reaches the floor, as Hsu et al. and flwr-datasets do.
  draws = _stream(seed, "shares")
  for _ in range(_TRIES if kind == "dirichlet" else 1):
    deal = _deal(kind, names, splits["train"], config.dirichlet_alpha, draws)
    train = parts("train", deal)
    smallest = min(train, key=lambda name: len(train[name]))
    if len(train[smallest]) >= config.min_examples:
      return {split: train if split == "train" else parts(split, deal) for split in splits}
  raise UserError(
    f"data.min_examples: expected at least {config.min_examples} examples a client; {smallest}"
    f" would get {len(train[smallest])}. Use fewer clients, a larger dirichlet_alpha, or a lower"
    " floor."
  )


def _stream(seed: int, purpose: str) -> np.random.Generator:
  """A stream for each purpose, so that a split's deal does not depend on what was drawn before."""
  return np.random.default_rng((_TAG, seed, zlib.crc32(purpose.encode()), 1))


def _sites(splits: Mapping[str, Examples], num_clients: int) -> list[str]:
  sites = {split: {example.site for example in examples} for split, examples in splits.items()}
  names = sorted(sites["train"])
  if len(names) != num_clients:
    raise UserError(
      f"data.num_clients: expected {len(names)}, the sites of this source, for the natural"
      f" partition; got {num_clients}"
    )
  for split, found in sites.items():
    if unknown := sorted(found - set(names)):
      raise UserError(
        f"data.partition: expected sites of train alone for the natural partition; {split} also"
        f" has {', '.join(unknown)}. Use another partition, or move these examples into train."
      )
  return names


def _check_task(train: Examples, num_clients: int) -> None:
  if num_clients < 2:
    raise UserError(
      "data.num_clients: expected at least 2 for the task partition, one with captions and one"
      f" with questions; got {num_clients}"
    )
  for side, questions in (("captions", False), ("questions", True)):
    if not any(bool(example.question) == questions for example in train):
      raise UserError(
        "data.partition: expected images with captions and images with questions for the task"
        f" partition; train has none with {side}. Use another partition or source."
      )


def _deal(
  kind: str, names: list[str], train: Examples, alpha: float, draws: np.random.Generator
) -> Deal:
  if kind == "natural":
    return lambda examples, _: {example.image: example.site for example in examples}
  if kind == "iid":
    return lambda examples, rng: _evenly([example.image for example in examples], names, rng)
  if kind == "task":
    return lambda examples, rng: _by_task(examples, names, rng)
  categories = sorted({_main(example) for example in train})
  shares = {category: draws.dirichlet(np.full(len(names), alpha)) for category in categories}
  return lambda examples, rng: _by_category(examples, names, shares, rng)


def _evenly(images: Sequence[str], names: list[str], rng: np.random.Generator) -> dict[str, str]:
  distinct = list(dict.fromkeys(images))
  order = rng.permutation(len(distinct))
  return {distinct[j]: names[i % len(names)] for i, j in enumerate(order)}


def _by_task(examples: Examples, names: list[str], rng: np.random.Generator) -> dict[str, str]:
  captions = [example.image for example in examples if not example.question]
  questions = [example.image for example in examples if example.question]
  both = set(captions) & set(questions)
  half = (len(names) + 1) // 2
  return (
    _evenly([image for image in captions if image not in both], names[:half], rng)
    | _evenly([image for image in questions if image not in both], names[half:], rng)
    | _evenly([image for image in captions if image in both], names, rng)
  )


def _by_category(
  examples: Examples,
  names: list[str],
  shares: Mapping[str, Float[np.ndarray, " clients"]],
  rng: np.random.Generator,
) -> dict[str, str]:
  members: dict[str, list[str]] = {}
  for image, category in {example.image: _main(example) for example in examples}.items():
    members.setdefault(category, []).append(image)
  owner: dict[str, str] = {}
  even = np.full(len(names), 1 / len(names))
  for category in sorted(members):
    # Cut at shares from a random start: a small category goes by its shares on average, and never
    # more than an image away from them.
    count = len(members[category])
    ends = np.cumsum(shares.get(category, even))[:-1] * count + rng.random()
    groups = np.split(rng.permutation(members[category]), ends.astype(int))
    for name, group in zip(names, groups, strict=True):
      owner.update((str(image), name) for image in group)
  return owner


def _main(example: Example) -> str:
  return example.labels[0] if example.labels else ""

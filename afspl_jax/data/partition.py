"""Splits examples over clients. All examples of one image go to one client."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from afspl_jax.config import Data, choice
from afspl_jax.errors import UserError
from afspl_jax.types import Example

Clients = dict[str, Int[np.ndarray, " examples"]]  # site name -> indices of its examples

_TRIES = 1000


def partition(examples: Sequence[Example], config: Data, seed: int) -> Clients:
  """Splits `examples` by `config.partition`.

  Args:
    examples: of the training split.
    config: `natural` makes a client of each site; `iid` deals images out at random; `dirichlet`
      draws each category's shares over the clients from Dirichlet(alpha) (Hsu et al. 2019).
    seed: equal seeds split equally.

  Raises:
    UserError: a client would hold fewer than `config.min_examples` examples, or the natural
      sites are not `config.num_clients`.
  """
  choice("data.partition", config.partition, ("natural", "iid", "dirichlet"))
  images = list(dict.fromkeys(example.image for example in examples))
  if config.partition == "natural":
    owner = {example.image: example.site for example in examples}
    names = sorted(set(owner.values()))
    if len(names) != config.num_clients:
      raise UserError(
        f"data.num_clients: expected {len(names)}, the sites of this source, for the natural"
        f" partition; got {config.num_clients}"
      )
    return _checked(examples, owner, names, config.min_examples)
  names = [f"client{i:04d}" for i in range(config.num_clients)]
  rng = np.random.default_rng((seed, 7))
  if config.partition == "iid":
    order = rng.permutation(len(images))
    owner = {images[j]: names[i % len(names)] for i, j in enumerate(order)}
    return _checked(examples, owner, names, config.min_examples)
  categories: dict[str, list[str]] = {}
  for example in examples:
    members = categories.setdefault(example.category, [])
    if not members or members[-1] != example.image:
      members.append(example.image)
  # Draw again until every client reaches the floor, as Hsu et al. and flwr-datasets do.
  for attempt in range(_TRIES):
    owner = _dirichlet(categories, names, config.dirichlet_alpha, rng)
    try:
      return _checked(examples, owner, names, config.min_examples)
    except UserError:
      if attempt == _TRIES - 1:
        raise
  raise AssertionError("unreachable")


def _dirichlet(
  categories: dict[str, list[str]], names: list[str], alpha: float, rng: np.random.Generator
) -> dict[str, str]:
  owner: dict[str, str] = {}
  for category in sorted(categories):
    members = rng.permutation(categories[category])
    shares = rng.dirichlet(np.full(len(names), alpha))
    cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
    for name, part in zip(names, np.split(members, cuts), strict=True):
      owner.update((str(image), name) for image in part)
  return owner


def _checked(
  examples: Sequence[Example], owner: dict[str, str], names: list[str], floor: int
) -> Clients:
  parts: dict[str, list[int]] = {name: [] for name in names}
  for index, example in enumerate(examples):
    parts[owner[example.image]].append(index)
  smallest = min(parts, key=lambda name: len(parts[name]))
  if len(parts[smallest]) < floor:
    raise UserError(
      f"data.min_examples: expected at least {floor} examples a client; {smallest} would get"
      f" {len(parts[smallest])}. Use fewer clients, a larger dirichlet_alpha, or a lower floor."
    )
  return {name: np.array(indices) for name, indices in parts.items()}

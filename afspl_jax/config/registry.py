"""Plugins by name: every module of a package, and what other packages register by entry point.

A new strategy, data source or partition is one new file in its package, and nothing else is edited.
A third party adds one without a change here, in its own pyproject.toml:

    [project.entry-points."afspl_jax.strategies"]
    my_method = "my_package.my_method"
"""

import importlib
import importlib.util
import pkgutil
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from afspl_jax.errors import SettingError, UserError


@dataclass(frozen=True)
class Registry:
  """The modules that one setting chooses from.

  Args:
    setting: dotted name of the setting, for errors.
    package: the package whose modules are the built-in ones, without those that begin with `_`.
    group: of the entry points, each of which names a module.
  """

  setting: str
  package: str
  group: str

  def built_in(self) -> tuple[str, ...]:
    """Names of the package's own modules, sorted; imports none of them."""
    if self.package in sys.modules:
      path = list(sys.modules[self.package].__path__)
    else:
      spec = importlib.util.find_spec(self.package)
      path = list(spec.submodule_search_locations or ()) if spec else []
    names = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name for name in names if not name.startswith("_")))

  def names(self) -> tuple[str, ...]:
    """All names, sorted; a built-in module wins over an entry point of its name."""
    return tuple(sorted({*self.built_in(), *entry_points(group=self.group).names}))

  def load(self, name: str, listed: tuple[str, ...] = ()) -> Any:
    """The module of that name.

    Args:
      name: one of `names`.
      listed: what an error lists, where users write some names in another form.

    Raises:
      SettingError: there is no such module.
      UserError: a third party's module does not import.
    """
    if name in self.built_in():
      return importlib.import_module(f"{self.package}.{name}")
    for entry in entry_points(group=self.group, name=name):
      try:
        return entry.load()
      except (ImportError, AttributeError) as error:
        raise UserError(
          f"{self.setting}={name}: expected the module {entry.value} of its entry point in"
          f" {self.group}; got {type(error).__name__}: {error}"
        ) from error
    known = ", ".join(listed or self.names())
    raise SettingError(f"{self.setting}: expected one of {known}; got {name!r}")


STRATEGIES = Registry("fed.strategy", "afspl_jax.federation.strategies", "afspl_jax.strategies")
SOURCES = Registry("data.source", "afspl_jax.data.sources", "afspl_jax.sources")
PARTITIONS = Registry("data.partition", "afspl_jax.data.partitions", "afspl_jax.partitions")

"""What an algorithm says about itself, at the end of its file.

  SPEC = specs.Spec(name='fedprox', build=fedprox, ...)

Tables of names, labels, settings, ranges and of how held-out clients adapt are
derived from it: nothing else has to know an algorithm.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import inspect
import numbers
from typing import Any, NamedTuple

import jax

from fmtl_jax import federation as federation_lib
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib

_INFINITE = float('inf')

# Kinds of algorithms, in the order of tables.
ALONE = 'Nothing is shared'
GLOBAL = 'One global model'
PARTIAL = 'Some layers are personal'
PERSONALIZED = 'A model for each client'
CLUSTERED = 'A model for each cluster of clients'
MULTI_TASK = 'Layers of tasks'
CENTRALIZED = 'Centralized multi-task learning'
VERTICAL = 'Parties with other features of the same rows'
OWN = "The user's own"
FAMILIES = (
  ALONE,
  GLOBAL,
  PARTIAL,
  PERSONALIZED,
  CLUSTERED,
  MULTI_TASK,
  CENTRALIZED,
  VERTICAL,
  OWN,
)
# What a centralized algorithm trains on: the union of all clients' examples,
# as one client with all tasks, or as one client for each task.
JOINT = 'joint'
SEPARATE = 'separate'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """A setting of an algorithm's own; its default is that of the code.

  Attributes:
    help: What it is, in one line.
    least: The least value.
    most: The largest value.
    above: Whether the least value itself is excluded.
    below: Whether the largest value itself is excluded.
    choices: All values, where there are few; there is no range then.
    says: The rule in words, of what the algorithm checks itself; there is
      neither a range nor a choice then.
    cure: What to do about a value out of range; '' where that is plain.
    examples: Two values with which a toy trains differently.
  """

  help: str
  least: float = -_INFINITE
  most: float = _INFINITE
  above: bool = False
  below: bool = False
  choices: tuple[Any, ...] = ()
  says: str = ''
  cure: str = ''
  examples: tuple[Any, Any]

  @property
  def rule(self) -> str:
    """Which values it may have, in words: `>= 0`, `in [0, 1)`."""
    if self.says:
      return self.says
    if self.choices:
      return f'to be one of {", ".join(map(str, self.choices))}'
    if self.most < _INFINITE:
      ends = '[('[self.above], '])'[self.below]
      return f'in {ends[0]}{self.least:g}, {self.most:g}{ends[1]}'
    return f'{">" if self.above else ">="} {self.least:g}'

  def allows(self, value: Any) -> bool:
    """Whether it may have a value; one that is traced is not known."""
    if isinstance(value, jax.Array) or self.says:
      return True
    if self.choices:
      return value in self.choices
    if self.least == -_INFINITE and self.most == _INFINITE:
      return True
    if not isinstance(value, numbers.Real):
      return False
    number = float(value)
    return (number > self.least if self.above else number >= self.least) and (
      number < self.most if self.below else number <= self.most
    )

  def check(self, name: str, value: Any) -> None:
    """Raises a ValueError for a value that it may not have.

    Args:
      name: How the user calls it.
      value: Traced ones pass.
    """
    if not self.allows(value):
      shown = repr(value) if isinstance(value, str) else value
      cure = f'; {self.cure}' if self.cure else ''
      raise ValueError(f'Expected {name} {self.rule}, got {shown}{cure}.')


class Degenerate(NamedTuple):
  """A degenerate case, in which an algorithm is another, simpler one.

  Attributes:
    is_: The simpler algorithm, as in 'is fedavg'.
    own: The values of settings of the case.
    where: Whether a federation is of the case; None if any is.
  """

  is_: str
  own: Mapping[str, Any] = {}
  where: Callable[[federation_lib.Federation], bool] | None = None

  def holds(
    self, own: Mapping[str, Any], federation: federation_lib.Federation
  ) -> bool:
    """Whether settings and a federation are of the case."""
    return all(own[name] == value for name, value in self.own.items()) and (
      self.where is None or self.where(federation)
    )

  def reason(self, defaults: Mapping[str, Any]) -> str:
    """The case in words, with the settings that are not at their defaults."""
    given = [
      f'`{name}`={value!r}'
      for name, value in self.own.items()
      if value != defaults[name]
    ]
    return f'{self.is_} with {" and ".join(given)}' if given else self.is_


class Way(NamedTuple):
  """How a held-out client adapts, by plain SGD.

  Attributes:
    all_layers: Whether all layers are trained; otherwise those of which clients
      or tasks have copies, none in FedAvg.
    rate: The learning rate.
    pull: The proximal weight: `pull / 2` times the squared distance from the
      initial parameters is added to the loss.
  """

  all_layers: bool
  rate: float
  pull: float = 0.0


# `(own settings, learning rate) -> Way`; the rate is for algorithms that have
# none of their own for it.
Adapt = Callable[[Mapping[str, Any], float], Way]


def own_layers(unused_own: Mapping[str, Any], rate: float) -> Way:
  """Layers of which clients or tasks have copies."""
  return Way(False, rate)


def all_layers(unused_own: Mapping[str, Any], rate: float) -> Way:
  """All layers."""
  return Way(True, rate)


# `(own settings, epochs of local training) -> epochs`.
Epochs = Callable[[Mapping[str, Any], int], int]


def local_epochs(unused_own: Mapping[str, Any], epochs: int) -> int:
  """Those of local training."""
  return epochs


def _as_it_is(model, rules, unused_tasks, unused_own):
  """The user's network."""
  return model, rules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
  """An algorithm that can be chosen by name.

  Attributes:
    name: By which it is chosen.
    label: How tables show it.
    doc: The docstring of its file: its first line, and the paragraph
      `Deviations`, are shown.
    family: One of `FAMILIES`.
    year: Of its paper.
    build: The factory `(federation, local, settings, **own) -> Algorithm`.
    label_rules: `(layers, **depths) -> rules`, its layer types by depth.
    depths: The numbers of layers that `label_rules` takes, by name.
    leaf_rules: `(**settings) -> rules` of leaves inside layers, in front of
      those by depth; one that covers no leaf of a network does not count. What
      it takes are settings of the algorithm's own.
    settings: Those of its own, by name: each is taken by `build` or by
      `leaf_rules`, which have its default.
    rounds: The settings of rounds without which it is another algorithm.
    network: The settings of the network without which it is another algorithm.
    centralized: What it trains on where there are no clients, `JOINT` or
      `SEPARATE`; '' for the clients' own data.
    adapt: How held-out clients adapt.
    degenerate: Its degenerate cases.
    owners: `own settings -> number of owners` of the layer types that it adds,
      by name, which is that of their index, too.
    epochs_of_examples: How many epochs of DP-SGD clients train in a round, all
      their models together, where they use examples in no other way; None for
      an algorithm that refuses privacy of examples.
    wraps: `(model, rules, tasks, own settings) -> (model, rules)`: the network
      that it trains in the place of the user's, such as several of them.
  """

  name: str
  label: str
  doc: str | None
  family: str
  year: int
  build: Callable[..., algorithm_lib.Algorithm]
  label_rules: Callable[..., layer_types.Rules]
  depths: tuple[str, ...] = ()
  leaf_rules: Callable[..., layer_types.Rules] = lambda: ()
  settings: Mapping[str, Setting] = dataclasses.field(default_factory=dict)
  rounds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  network: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  centralized: str = ''
  adapt: Adapt = own_layers
  degenerate: tuple[Degenerate, ...] = ()
  owners: Callable[[Mapping[str, Any]], Mapping[str, int]] = lambda _: {}
  epochs_of_examples: Epochs | None = None
  wraps: Callable[..., tuple[Any, layer_types.Rules]] = _as_it_is

  def __post_init__(self):
    if self.family not in FAMILIES:
      raise ValueError(
        f'Expected the family of {self.name} to be one of '
        f'{", ".join(map(repr, FAMILIES))}, got {self.family!r}.'
      )
    taken = self._parameters()
    bare = [n for n, p in taken.items() if p.default is inspect.Parameter.empty]
    if bare:
      raise ValueError(
        f'Expected {self.name} to have a default for its setting {bare[0]!r}, '
        'got none; give it that of the paper.'
      )
    missing = [name for name in self.settings if name not in taken]
    if missing:
      raise ValueError(
        f'Expected {self.name} to take its setting {missing[0]!r}, neither its '
        'factory nor its leaf rules do; add it there.'
      )
    more = [name for name in taken if name not in self.settings]
    if more:
      raise ValueError(
        f'Expected {self.name} to describe its setting {more[0]!r}, its '
        'settings do not; add it to its SPEC.'
      )
    depths = inspect.signature(self.label_rules).parameters
    unknown = [name for name in self.depths if name not in depths]
    if unknown:
      raise ValueError(
        f'Expected the label rules of {self.name} to take {unknown[0]!r}, a '
        'depth, they do not; add it there.'
      )

  def _parameters(self) -> dict[str, inspect.Parameter]:
    """What the factory and the leaf rules take beside what all of them do."""
    given = inspect.signature(self.build).parameters
    own = {
      name: parameter
      for name, parameter in given.items()
      if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return own | dict(inspect.signature(self.leaf_rules).parameters)

  @property
  def own(self) -> tuple[str, ...]:
    """The settings of its own that `build` takes, by name."""
    leaf = self.leaf_settings
    return tuple(name for name in self.settings if name not in leaf)

  @property
  def has_own_network(self) -> bool:
    """Whether it trains another network than the user's."""
    return self.wraps is not _as_it_is

  @functools.cached_property
  def leaf_settings(self) -> tuple[str, ...]:
    """The settings of its own that `leaf_rules` takes, by name."""
    return tuple(inspect.signature(self.leaf_rules).parameters)

  @functools.cached_property
  def defaults(self) -> Mapping[str, Any]:
    """The settings of its own, with the values that the code has for them."""
    taken = self._parameters()
    return {name: taken[name].default for name in self.settings}

  @functools.cached_property
  def default_depths(self) -> Mapping[str, int]:
    """The depths, with the values that the code has for them."""
    taken = inspect.signature(self.label_rules).parameters
    return {name: taken[name].default for name in self.depths}

  @property
  def title(self) -> str:
    """The first line of its file."""
    return (self.doc or self.label).strip().splitlines()[0]

  @property
  def deviations(self) -> str:
    """Deviations of its defaults, or of the algorithm, from its paper.

    The paragraph `Deviations` of its file; '' for nowhere.
    """
    for paragraph in inspect.cleandoc(self.doc or '').split('\n\n'):
      words = paragraph.split()
      if words[:1] == ['Deviations:']:
        return ' '.join(words[1:])
    return ''

  def check(self, **own: Any) -> None:
    """Raises a ValueError for a setting of its own that is out of range.

    Args:
      **own: By name; traced values pass.
    """
    for name, value in own.items():
      if name not in self.settings:
        raise ValueError(
          f'Unknown setting {name!r} of {self.name}; known are '
          f'{", ".join(self.settings) or "none"}.'
        )
      self.settings[name].check(f'`{name}`', value)

  def equals(
    self, own: Mapping[str, Any], federation: federation_lib.Federation
  ) -> str:
    """The degenerate case, as in 'is fedavg with `mu`=0'.

    Args:
      own: All settings of its own.
      federation: Of what it would train.

    Returns:
      The first degenerate case that holds, '' if none does.
    """
    for case in self.degenerate:
      if case.holds(own, federation):
        return case.reason(self.defaults)
    return ''


def ordered(found: Iterable[Spec]) -> dict[str, Spec]:
  """Algorithms by name, in the order of tables: family, year, name.

  Raises:
    ValueError: If two have the same name or the same label.
  """
  place = lambda spec: (FAMILIES.index(spec.family), spec.year, spec.name)
  table: dict[str, Spec] = {}
  labels: dict[str, str] = {}
  for spec in sorted(found, key=place):
    if spec.name in table:
      raise ValueError(
        f'Expected one algorithm of the name {spec.name!r}, got two; give the '
        'new one another name.'
      )
    if spec.label in labels:
      raise ValueError(
        f'Expected one algorithm with the label {spec.label!r}, got '
        f'{labels[spec.label]} and {spec.name}; give the new one another label.'
      )
    table[spec.name] = spec
    labels[spec.label] = spec.name
  return table

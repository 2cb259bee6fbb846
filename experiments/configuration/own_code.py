"""Code of the user's own: `package.module:NAME` where a name is asked for.

  data.name                  `(data, *, KEY=...) -> datasets.Source`, of the
                             config's `data`; `from fmtl_jax.experiments import
                             datasets`
  data.tasks                 `tasks -> tasks`, those of the source with another
                             loss, other metrics or of another kind
  data.metrics               no function: each a `metrics.Metric`, beside names
                             of `metrics.CHOICES`
  model.name                 `(shape, num_outputs, *, KEY=...) -> models.Model`,
                             of the shape of an example
  algorithm.name, cases      `(federation, local, settings, *, KEY=...) ->
                             algorithms.Algorithm` with the label rules of
                             FedAvg, or an `algorithms.Spec`

A keyword with a default that is a number, a truth value, a text or a tuple is a
setting: `data.own.KEY`, `model.own.KEY`, `algorithm.NAME.KEY`. Modules are
found where Python finds them, the current folder first. They define things and
compute nothing when they are imported: JAX has not started.

An algorithm is a row of the table under its whole name; what stands by case in
a config (`overrides`, `report.labels`) has the part behind the colon.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import importlib
import inspect
import os
import sys
from typing import Any

from . import catalogue
from . import hints
from fmtl_jax import algorithms
from fmtl_jax.algorithms import fedavg
from fmtl_jax.algorithms import specs

DATA, MODEL, ALGORITHM = 'data.name', 'model.name', 'algorithm.name'
TASKS, METRICS = 'data.tasks', 'data.metrics'
# What a function is called with: all else are its settings.
_CALLED_WITH = {
  DATA: ('data',),
  TASKS: ('tasks',),
  MODEL: ('shape', 'num_outputs'),
  ALGORITHM: ('federation', 'local', 'settings'),
}
_GIVEN = 'given'  # The module of objects that have none.
_objects: dict[str, Any] = {}


def is_own(name: str) -> bool:
  """Whether a name is one of the user's, whatever it names."""
  return ':' in name


def key(name: str) -> str:
  """The part of a name under which a config has what it says by name."""
  return name.rpartition(':')[2]


def named(value: Any, name: str = '') -> str:
  """The name of an object, to be given in a config.

  That of a function that can be imported is where it stands, so that another
  process finds it. Any other object is kept in this process under `name`.

  Example:
    config.model.name = own_code.named(functools.partial(net, 3), 'net3')

  Args:
    value: What a name may stand for, see above.
    name: What to call it, an identifier; by default it is called what it is.

  Raises:
    ValueError: If it has no name.
  """
  module = getattr(value, '__module__', '')
  found = getattr(value, '__name__', '')
  if not name and getattr(sys.modules.get(module), found or ':', None) is value:
    return f'{module}:{found}'
  name = name or found
  if not name.isidentifier():
    raise ValueError(
      f'Expected a name for {value!r}, which has none; give one, as in '
      "named(value, 'mine')."
    )
  _objects[f'{_GIVEN}:{name}'] = value
  return f'{_GIVEN}:{name}'


def find(field: str, name: str) -> Any:
  """What a name stands for.

  Args:
    field: In which it was given.
    name: `package.module:NAME`.

  Raises:
    ValueError: If the name is invalid, or nothing is found there.
  """
  if name in _objects:
    return _objects[name]
  place, _, attribute = name.partition(':')
  if not all(map(str.isidentifier, [*place.split('.'), attribute])):
    raise ValueError(
      f'Expected {field} to be package.module:NAME, got {name!r}.'
    )
  if place == _GIVEN:
    raise ValueError(
      f'{field}={name} was given as an object in another process; give it '
      f'again, with {__name__}.named(value, {attribute!r}).'
    )
  try:
    module = importlib.import_module(place)
  # A file of the user's can raise anything.
  except (Exception, SystemExit) as error:
    cure = 'correct it, --debug shows where'
    missing = getattr(error, 'name', None)
    is_absent = isinstance(error, ModuleNotFoundError)
    is_absent &= f'{place}.'.startswith(f'{missing}.')
    if is_absent:
      top = place.split('.')[0]
      cure = (
        f'start in the folder that holds {top!r}, or put that folder on '
        f'PYTHONPATH ({os.getcwd()} is the current one)'
      )
      if missing != top:  # It is there, or another one of this name.
        package = importlib.import_module(top)
        found = ', '.join(getattr(package, '__path__', [_file(package)]))
        cure = f'name a module that is in {found}, or {cure}'
    raise ValueError(
      f'{field}={name}: the module {place!r} cannot be imported '
      f'({_described(error)}); {cure}.'
    ) from error
  if not hasattr(module, attribute):
    known = [known for known in vars(module) if not known.startswith('_')]
    raise ValueError(
      f'{field}={name}: the module {place!r} ({_file(module)}) has no '
      f'{attribute!r}; define it there.{hints.nearest(attribute, known)}'
    )
  return getattr(module, attribute)


def function(field: str, name: str) -> Callable[..., Any]:
  """A function of the user's; see `find`.

  Raises:
    ValueError: If it is not a function with the expected arguments.
  """
  found = find(field, name)
  form = ', '.join(_CALLED_WITH[field])
  if not callable(found):
    raise ValueError(
      f'Expected {field}={name} to be a function ({form}), got {found!r}.'
    )
  _check_form(field, name, found)
  if field == TASKS and _keywords(field, found):
    raise ValueError(
      f'Expected {field}={name} to take ({form}) alone, got a function with '
      'settings, which no field has; make them constants.'
    )
  return found


def _check_form(field, name, found):
  """Raises a ValueError unless a function takes what it is called with."""
  form = _CALLED_WITH[field]
  try:
    signature = inspect.signature(found)
    signature.bind(*form)
  except (TypeError, ValueError) as error:
    raise ValueError(
      f'Expected {field}={name} to take ({", ".join(form)}) and settings with '
      f'defaults, got a function that does not ({error}).'
    ) from error


def settings_of(field: str, name: str) -> dict[str, Any]:
  """The settings of a user's function with their defaults, by keyword."""
  if field == ALGORITHM:
    found = spec(name).defaults
  else:
    found = _keywords(field, function(field, name))
  return {k: default for k, default in found.items() if _is_plain(default)}


def _keywords(field, found):
  """What a function takes beside what it is called with, with defaults."""
  given = list(inspect.signature(found).parameters.values())
  kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
  more = [p for p in given if p.kind not in kinds]
  count = len(_CALLED_WITH[field])
  positional = [p for p in more if p.kind != inspect.Parameter.KEYWORD_ONLY]
  return {p.name: p.default for p in more if p not in positional[:count]}


def _is_plain(value: Any) -> bool:
  """Whether a value may stand in a config."""
  if isinstance(value, tuple):
    return all(map(_is_plain, value))
  return isinstance(value, (bool, int, float, str))


def spec(name: str) -> algorithms.Spec:
  """The `Spec` of an algorithm, of the package or the user's.

  Raises:
    ValueError: If there is none.
  """
  if not is_own(name):
    return catalogue.find(name)
  found = find(ALGORITHM, name)
  if isinstance(found, algorithms.Spec):
    _check_form(ALGORITHM, name, found.build)
    return dataclasses.replace(found, build=_checked(name, found.build))
  build = function(ALGORITHM, name)
  own = {
    setting: default
    for setting, default in _keywords(ALGORITHM, build).items()
    if _is_plain(default)
  }
  return algorithms.Spec(
    name=key(name),
    label=key(name),
    doc=getattr(build, '__doc__', None),
    family=specs.OWN,
    year=0,
    build=_checked(name, build, own),
    label_rules=fedavg.label_rules,
    settings={
      setting: algorithms.Setting(help='', examples=(default, default))
      for setting, default in own.items()
    },
  )


def _checked(name, build, own=None):
  """A factory whose errors are sentences, as are those of what it builds.

  Args:
    name: Of the algorithm.
    build: The user's.
    own: The settings that it takes by keyword, with their defaults; None for
      what `build` says.
  """

  @functools.wraps(build)
  def checked(*args, **settings):
    built = call(ALGORITHM, name, build, *args, **settings)
    if not isinstance(built, algorithms.Algorithm):
      raise ValueError(
        f'Expected {ALGORITHM}={name} to return an algorithms.Algorithm, as '
        f'federated_averaging does, got {hints.shown(built)}.'
      )
    parts: dict[str, Any] = {
      part: functools.partial(call, ALGORITHM, name, function)
      for part, function in built._asdict().items()
      if callable(function)
    }
    return built._replace(**parts)

  if own is not None:
    called_with = inspect.Parameter.POSITIONAL_OR_KEYWORD
    setting = functools.partial(
      inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY
    )
    checked.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
      [
        *(inspect.Parameter(n, called_with) for n in _CALLED_WITH[ALGORITHM]),
        *(setting(n, default=default) for n, default in own.items()),
      ]
    )
  return checked


def call(
  field: str, name: str, found: Callable[..., Any], *args: Any, **settings: Any
) -> Any:
  """Calls a user's function; its errors become sentences.

  Raises:
    ValueError: If it raises anything but an OSError or a MemoryError, or exits.
  """
  try:
    return found(*args, **settings)
  except (OSError, MemoryError):
    raise
  except (Exception, SystemExit) as error:
    raise ValueError(
      f'{field}={name} raised an error ({_described(error)}); correct it, or '
      'what it is given; --debug shows where.'
    ) from error


def names_in(config: Mapping[str, Any]) -> list[str]:
  """The user's algorithms that a config names, in the order of its table."""
  chosen = [*config.get('cases', ()), config['algorithm'].get('name', '')]
  return [name for name in dict.fromkeys(chosen) if is_own(str(name))]


def defaults(config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that a user's code adds to a config, with their defaults.

  Args:
    config: Its names count.

  Returns:
    Defaults by dotted field name.
  """
  fields = {}
  for field in (DATA, MODEL):
    section = field.split('.')[0]
    name = config[section].get('name', '')
    if is_own(str(name)):
      for setting, default in settings_of(field, name).items():
        fields[f'{section}.own.{setting}'] = default
  for name in names_in(config):
    for setting, default in settings_of(ALGORITHM, name).items():
      fields[f'algorithm.{key(name)}.{setting}'] = default
  return fields


def check_keys(names: Iterable[str], known: Iterable[str]) -> None:
  """Raises a ValueError for algorithms that a config cannot tell apart.

  Args:
    names: Of the user's algorithms.
    known: What is called something else already.
  """
  taken = dict.fromkeys(known, 'a name of this package')
  for name in names:
    if key(name) in taken:
      raise ValueError(
        f'Expected another name behind the colon of {name!r} than '
        f'{key(name)!r}, which is {taken[key(name)]}: its settings stand under '
        'it; rename it.'
      )
    taken[key(name)] = f'that of {name!r}'


def _described(error: BaseException) -> str:
  """An error on one line."""
  return ' '.join(f'{type(error).__name__}: {error}'.split())


def _file(module: Any) -> str:
  return str(getattr(module, '__file__', None) or 'no file')

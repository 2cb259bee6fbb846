"""Secure sums of rounds: which aggregators they take, and what they refuse.

With `RoundSettings.secure` the server sees sums over at least a threshold of
clients and nothing of one client. Updates, what is reported beside them and
weights are added up as whole numbers in the compiled round, the same bits as
with masks (`secure_aggregation`); how many clients take part, who they are and
whether they stayed is public. Layers that their clients keep, and pre-trained
ones, never enter a sum. There is one run for each layer type and group: who
owns the same copy.
"""

import dataclasses
from typing import Any

import jax
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import compression
from fmtl_jax import federation as federation_lib
from fmtl_jax.clients import client_updates
from fmtl_jax.federation import layer_types
from fmtl_jax.privacy import settings as privacy_settings
from fmtl_jax.rounds import round_settings
from fmtl_jax.secure_aggregation import fixed_point
from fmtl_jax.secure_aggregation import protocol as protocol_lib
from fmtl_jax.secure_aggregation import reducers
from fmtl_jax.secure_aggregation import sizes
from fmtl_jax.secure_aggregation import whole_numbers
from fmtl_jax.server import aggregators
from fmtl_jax.server import weights as weights_lib

Tree = Any
_TASK = 'task'


def applied(
  federation: federation_lib.Federation,
  client_update: client_updates.ClientUpdate,
  settings: round_settings.RoundSettings,
  *,
  compares: bool = False,
) -> round_settings.RoundSettings:
  """The settings with the aggregators and codecs of secure sums.

  Args:
    federation: Network, layer types and tasks.
    client_update: Of the algorithm.
    settings: As they are if they ask for no secure sums.
    compares: Whether clients get owners by their data or by their updates.

  Raises:
    ValueError: If something needs updates of single clients, or a group is too
      small.
  """
  secure = settings.secure
  if secure is None:
    return settings
  averaged = _averaged(federation)
  _check(federation, client_update, settings, averaged, compares)
  if settings.privacy is not None:  # Their noise is added to these sums.
    return settings
  found, codecs = dict(settings.reducer), dict(settings.compression)
  for name in averaged:
    sizes_ = _groups(federation, settings, name)
    least = _thresholds(federation, settings, name)
    uniform = _is_uniform(federation, settings, name)
    point = secure.point(max(sizes_), uniform, few_bits=False)
    codec = None
    if secure.bits < fixed_point.WORD:
      few = secure.point(max(sizes_), uniform, few_bits=True)
      codec = _codec(federation, name, few)
      point = point if codec is None else few
    if codec is not None:
      codecs[name] = codec
    found[name] = reducers.reducer(
      point,
      secure.report_point(max(sizes_), uniform),
      least,
      clips=codec is None,
    )
  return dataclasses.replace(settings, reducer=found, compression=codecs)


def _thresholds(federation, settings, name) -> np.ndarray:
  """How many have to send, `[owners]` or `[]` uint32."""
  found = [rule.threshold for rule in protocols(federation, settings, name)]
  is_single = federation.owners[name].index is None
  return np.array(found[0] if is_single else found, np.uint32)


def private(
  federation: federation_lib.Federation,
  settings: round_settings.RoundSettings,
  name: str,
  bound: float | None,
) -> tuple[aggregators.Aggregator, float]:
  """The sums of private clients, of whom the server sees the sum alone.

  Args:
    federation: Network, layer types and tasks.
    settings: That ask for secure sums.
    name: The layer type, of one that is averaged.
    bound: The norm to which clients have clipped; None where their own noise
      has none, so that they are clipped to `secure.clip` again.

  Returns:
    The aggregator, whose `finish` returns sums, and what rounding adds to the
    norm of a client's message in these layers at most.
  """
  secure: Any = settings.secure
  largest = max(_groups(federation, settings, name))
  point = secure.point(largest, True, few_bits=False, clip=bound)
  least = _thresholds(federation, settings, name)
  params = jax.eval_shape(federation.init_params, jax.random.key(0))
  view = jax.eval_shape(federation.broadcast, params, federation.index_shapes())
  leaves = jax.tree.leaves(federation.of_type(name, view))
  rounding = point.rounding(sum(leaf.size for leaf in leaves))
  return reducers.sums(point, least, clips=bound is None), rounding


def protocols(
  federation: federation_lib.Federation,
  settings: round_settings.RoundSettings,
  name: str,
) -> list[protocol_lib.Protocol]:
  """Neighbours and threshold for each copy of a layer type.

  Args:
    federation: Network, layer types and tasks.
    settings: That ask for secure sums.
    name: The layer type, of one that is averaged.
  """
  secure: Any = settings.secure
  return [
    secure.protocol_of(size, _who(federation, name, place))
    for place, size in enumerate(_groups(federation, settings, name))
  ]


def messages(
  federation: federation_lib.Federation, settings: round_settings.RoundSettings
) -> tuple[list[Tree], list[Tree]]:
  """What a client moves beside its numbers, up and down, as of `Messages`.

  Shapes of bytes, as many as a client's messages have in a round in which
  nobody drops out; in groups of unlike sizes, the mean over their clients.
  """
  if settings.secure is None:
    return [], []
  labels = jax.tree.leaves(federation.layer_types)
  per_slot = jax.tree.leaves(federation.view_per_slot)
  treedef: Any = jax.tree.structure(federation.layer_types)
  ways: tuple[dict[int, Any], dict[int, Any]] = {}, {}
  for name in _averaged(federation):
    place = labels.index(name)
    groups = _groups(federation, settings, name)
    each = [
      sizes.beside(f"round 100000, the layers '{name}', group {group}", size)
      for group, size in enumerate(groups)
    ]
    for way, found in zip(ways, zip(*each, strict=True), strict=True):
      mean = round(np.average(found, weights=groups))
      shape = (federation.num_slots, mean) if per_slot[place] else (mean,)
      way[place] = jax.ShapeDtypeStruct(shape, np.dtype(np.uint8))
  up, down = (
    treedef.unflatten([way.get(i) for i in range(len(labels))]) for way in ways
  )
  return [up], [down]


def _averaged(federation) -> list[str]:
  present = sorted(set(jax.tree.leaves(federation.layer_types)))
  return [name for name in present if federation.owners[name].averaged]


def _is_uniform(federation, settings, name) -> bool:
  """Whether no weight of a layer type is above one."""
  weighting = settings.weighting.get(name, weights_lib.EXAMPLES)
  of_slots = federation.of_type(name, federation.view_per_slot)
  return weighting == weights_lib.UNIFORM or (
    weighting == weights_lib.TASK_BALANCED
    and not any(jax.tree.leaves(of_slots))
  )


def _counts(federation, settings) -> tuple[int, ...]:
  """K of each task."""
  return cohorts.check_clients_per_task(
    settings.clients_per_task,
    federation.group_sizes,
    [task.name for task in federation.tasks],
  )


def _groups(federation, settings, name) -> list[int]:
  """How many clients of a round own each copy of a layer type."""
  counts = _counts(federation, settings)
  if federation.owners[name].index == _TASK:
    return list(counts)
  if federation.num_slots > 1:  # All take part, see `_check`.
    return [federation.num_owners['client']]
  return [sum(counts)]


def _who(federation, name, place) -> str:
  """A group, for errors."""
  if federation.owners[name].index is None:
    return f'the cohort that shares the {name} layers'
  return f'the cohort of the task {federation.tasks[place].name!r}'


def _codec(federation, name, point) -> compression.Codec | None:
  """The codec of a layer type; None where 32 bits take no more."""
  shapes = layer_types.split(federation.shapes, federation.labels)[0]
  leaves = jax.tree.leaves(federation.of_type(name, shapes))
  codec = whole_numbers.codec(point)
  return codec if compression.is_smaller(codec, leaves) else None


def _check(federation, client_update, settings, averaged, compares) -> None:
  """Raises a ValueError for what needs more than sums."""
  if compares:
    raise ValueError(
      'Expected no `secure` sums with an algorithm that gives clients other '
      'clusters, got them; the server would see which one a client is in, and '
      'a cluster may have one client.'
    )
  if client_update.mirrors:
    raise ValueError(
      'Expected no `secure` sums with an algorithm whose server adds up the '
      'updates that its clients keep a sum of, too, got them; what is clipped '
      'or rounded on its way would make both sums drift apart.'
    )
  if settings.placement.task_axis is not None:
    raise ValueError(
      'Expected `task_axis`=None with `secure` sums, whose thresholds are '
      'those of all tasks, got another one; set one of them.'
    )
  for place in ('group', 'server'):
    if getattr(settings.balancing, place) is not None:
      raise ValueError(
        f"Expected `balancing.{place}`='none' with `secure` sums, because it "
        'needs more of clients than the sum of all, got another one; balance '
        'at clients.'
      )
  everyone = _counts(federation, settings) == tuple(federation.group_sizes)
  if federation.num_slots > 1 and not everyone:
    raise ValueError(
      'Expected `clients_per_task`=0 with `secure` sums where clients hold '
      'several tasks, because it is not known otherwise how many clients a '
      f'group will have, got {settings.clients_per_task}.'
    )
  for name in averaged:
    _check_layers(federation, settings, name)
  if settings.privacy is not None:
    _check_private(settings)


def _check_private(settings) -> None:
  """Raises a ValueError where sums of private clients have no bound."""
  if settings.privacy.sampling != privacy_settings.FIXED:
    raise ValueError(
      "Expected `sampling`='fixed' with `secure` sums, because one client more "
      'or less in a cohort of unknown size decides whether enough have sent, '
      f'got {settings.privacy.sampling!r}.'
    )
  if settings.privacy.adaptive is not None:
    raise ValueError(
      'Expected no `adaptive` norm with `secure` sums, because clients say '
      'beside them whether they were clipped, got one; set a constant norm.'
    )
  clock = getattr(settings.participation, 'clock', None)
  deadline = 0.0 if clock is None else clock.deadline
  if isinstance(deadline, jax.core.Tracer) or deadline:
    raise ValueError(
      'Expected no `deadline` with `privacy` and `secure` sums, because who is '
      'late depends on its number of examples, and decides whether enough have '
      'sent, got one; set 0.'
    )
  if settings.skip_nonfinite:
    raise ValueError(
      'Expected `skip_nonfinite`=False with `privacy` and `secure` sums, where '
      'who is not finite sends zeros, and who is skipped would decide whether '
      'enough have sent, got True; set False.'
    )
  if settings.secure.bits != fixed_point.WORD:
    raise ValueError(
      'Expected `secure.bits`=32 with `privacy`, whose noise covers what '
      'rounding adds to the norm of a message only where steps are small, got '
      f'{settings.secure.bits}.'
    )


def _check_layers(federation, settings, name) -> None:
  """Raises a ValueError for what needs more than sums, of one layer type."""
  secure, index = settings.secure, federation.owners[name].index
  if index not in (None, _TASK):
    raise ValueError(
      f'Expected `secure` sums of layers that many clients share, got {name!r} '
      f'layers, of which every {index} has a copy; a sum over one client is '
      'its update.'
    )
  if settings.reducer.get(name) is not None:
    raise ValueError(
      f"Expected no `reducer['{name}']` with `secure` sums, which are means "
      'over clients whose updates nobody sees, got one; set it to mean (their '
      'norms are bounded by `secure.clip`).'
    )
  if name in settings.compression:
    raise ValueError(
      f"Expected no `compression['{name}']` with `secure` sums, got "
      f'{settings.compression[name].name}, whose messages cannot be added up: '
      'each client has scales or places of its own; set `secure.bits`, whose '
      'step all clients share.'
    )
  weighting = settings.weighting.get(name, weights_lib.EXAMPLES)
  if weighting == weights_lib.PAPER:
    raise ValueError(
      f"Expected `weighting['{name}']` other than 'paper' with `secure` sums, "
      "because these weights do not add up to one; set 'examples'."
    )
  if secure.bits == fixed_point.WORD:
    return
  if weighting != weights_lib.UNIFORM:
    raise ValueError(
      f"Expected `weighting['{name}']`='uniform' with `secure.bits` below 32, "
      'because weighted updates take more bits than updates, got '
      f'{weighting!r}.'
    )
  if any(jax.tree.leaves(federation.of_type(name, federation.statistics))):
    raise ValueError(
      'Expected `secure.bits`=32 with running statistics among the '
      f'{name} layers, which have another range than updates, got '
      f'{secure.bits}.'
    )

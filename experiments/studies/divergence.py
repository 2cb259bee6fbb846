"""Divergence: the error for a loss or an update that is not finite."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fmtl_jax.clients import attacks
from fmtl_jax.clients import faults
from fmtl_jax.running import program as program_lib

_LAYERS = {faults.STATE: 'the state'}


class DivergedError(FloatingPointError):
  """A client's loss or update is not finite."""


def check_finite(
  metrics: Any,
  done: int,
  case: program_lib.Case,
  seeds: Sequence[int],
  label: str,
) -> None:
  """Raises a DivergedError that names the first number that is not finite."""
  finite = metrics['finite']
  bad = ~np.isfinite(metrics['loss_sum'])
  bad |= ~np.all(list(finite.values()), axis=0)[..., None]
  if not bad.any():
    return
  places = np.argwhere(bad)
  run, step, place, slot = places[places[:, 1].argmin()]
  client = metrics['client'][run, step, place]
  ids = np.asarray(case.runs.train.client_ids)[run]
  task = min(metrics['task'][run, step, place, slot], case.data.num_tasks - 1)
  names = [name for name, of in finite.items() if not of[run, step, place]]
  what = 'loss'
  if np.isfinite(metrics['loss_sum'][run, step, place, slot]):
    words = [_LAYERS.get(name, f'{name} layers') for name in names]
    what = f'update of {" and ".join(words)}'
  cure = (
    'use a smaller learning rate, or leave such clients out of a round with '
    'faults.nonfinite=skip_client'
  )
  if attacks.honest(case.data) is not None:
    cure = f'some clients attack: try another reducer.common, or {cure}'
  raise DivergedError(
    f'{label}: the {what} of client {ids[client]} on task '
    f'{case.data.tasks[task].name!r} was not finite in round {done + step} '
    f'(seed {seeds[run]}); {cure}.'
  )

"""Histories: metrics of a case so far, saved with its checkpoints."""

from collections.abc import Mapping
import types
from typing import Any

import numpy as np

from ..folders import environments
from ..reporting import results
from fmtl_jax.algorithms import clusters

_TOTALS = ('rounds', 'clients', 'slots', 'steps')
_COUNTED = ('client', 'task', 'steps')
_SKIPPED = 'skipped_rounds'  # Of clients whose results were not finite.


def to_json(value: Any) -> Any:
  """Nested lists of numbers, None where undefined."""
  array = np.asarray(value, np.float64)
  values = array.astype(object)
  values[~np.isfinite(array)] = None
  return values.tolist()


class History:
  """Metrics of a case so far, plain numbers saved with its checkpoints."""

  def __init__(self, saved: Mapping[str, Any] | None = None):
    saved = saved or {}
    self.rounds: list[int] = list(saved.get('rounds', []))
    self.values: dict[str, list[Any]] = dict(saved.get('values', {}))
    self.client_values: dict[str, Any] = dict(saved.get('client_values', {}))
    self.train_loss: list[Any] = list(saved.get('train_loss', []))
    # Of each run, rounds (from 1) without a loss: no client trained, or none
    # with finite results.
    self.idle_rounds: list[list[int]] = list(saved.get('idle_rounds', []))
    self.per_round: dict[str, list[Any]] = dict(saved.get('per_round', {}))
    self.totals: dict[str, float] = dict(
      saved.get('totals', dict.fromkeys(_TOTALS, 0.0))
    )
    self.seconds: float = saved.get('seconds', 0.0)
    self.compile_seconds: float = saved.get('compile_seconds', 0.0)
    self.environments: list[environments.Span] = list(
      saved.get(environments.KEY, environments.unknown(len(self.train_loss)))
    )

  def to_dict(self) -> dict[str, Any]:
    """The same as JSON values."""
    return dict(vars(self))

  def curves(self) -> dict[str, Any]:
    """The curves of a record, up to the last round."""
    return {
      'curve': {'round': self.rounds, 'values': self.values},
      'train_loss': self.train_loss,
      'idle_rounds': self.idle_rounds,
      'per_round': self.per_round,
    }

  def active(self, num_runs: int, point_size: int = 1) -> np.ndarray:
    """Which runs have not diverged, `[R]` bool.

    Args:
      num_runs: R.
      point_size: How many neighbouring runs end together.
    """
    ended = np.full(num_runs, np.nan)
    if self.train_loss:
      ended = results.ended(self.train_loss, self.idle_rounds)
    fine = np.isnan(ended).reshape(-1, point_size).all(1)
    return np.repeat(fine, point_size)

  def add_rounds(
    self,
    metrics: Any,
    num_clients: int,
    num_tasks: int,
    active: np.ndarray | None = None,
    diverged_above: float = np.inf,
  ) -> None:
    """Adds the metrics `[R, rounds, ...]` of some rounds.

    Args:
      metrics: As of `Program.run_rounds`.
      num_clients: M.
      num_tasks: T.
      active: `[R]` bool, the runs that were run; by default all.
      diverged_above: A loss above so many times that of the first round in
        which a client trained counts as undefined, as do those after it.
    """
    count = metrics['count'].sum((2, 3))
    if active is None:
      active = np.ones(len(count), bool)
    loss = metrics['loss_sum'].sum((2, 3)) / np.maximum(count, 1)
    idle = (count == 0) & active[:, None]
    loss[idle | ~active[:, None]] = np.nan
    done = len(self.train_loss)
    self.idle_rounds = [
      [*known, *(done + 1 + np.flatnonzero(of_run)).tolist()]
      for known, of_run in zip(
        self.idle_rounds or [[]] * len(idle), idle, strict=True
      )
    ]
    self.train_loss += to_json(loss.T)
    too_large = loss > diverged_above * self._first_loss()[:, None]
    loss[np.logical_or.accumulate(too_large, axis=1)] = np.nan
    self.train_loss[done:] = to_json(loss.T)
    self.environments = environments.extended(
      self.environments, done + 1, len(self.train_loss)
    )
    if 'skipped' in metrics:
      self._add_skipped(metrics, num_clients)
    if 'simulated_seconds' in metrics:
      seconds = metrics['simulated_seconds'].max(2)
      self._add_per_round('simulated_seconds', seconds)
    for name, values in metrics.get('measured', {}).items():
      self._add_per_round(name, np.where(active[:, None], values, np.nan))
    if clusters.CLUSTER in metrics:
      self._add_clusters(metrics, num_clients, active)
    metrics = {name: metrics[name][active] for name in _COUNTED}
    self.totals['rounds'] += metrics['client'].shape[0] * loss.shape[1]
    self.totals['clients'] += float((metrics['client'] < num_clients).sum())
    self.totals['slots'] += float((metrics['task'] < num_tasks).sum())
    self.totals['steps'] += float(metrics['steps'].sum())

  def _first_loss(self) -> np.ndarray:
    """The loss of the first round in which a client trained, `[R]`."""
    losses = np.array(self.train_loss, np.float64)
    first = (~results.is_idle(self.train_loss, self.idle_rounds)).argmax(0)
    return losses[first, np.arange(losses.shape[1])]

  def _add_per_round(self, name: str, values: np.ndarray) -> None:
    """Adds values `[R, rounds]` under a name."""
    self.per_round.setdefault(name, []).extend(to_json(values.T))

  def _add_skipped(self, metrics: Any, num_clients: int) -> None:
    """Counts excluded clients `[rounds][R]` and their rounds `[R][M]`."""
    skipped = metrics['skipped']
    self._add_per_round('skipped_clients', skipped.sum(2))
    known = self.client_values.get(_SKIPPED)
    counts = np.zeros((len(skipped), num_clients + 1))
    if known is not None:
      counts[:, :-1] = known
    for run, of_run in enumerate(counts):
      np.add.at(of_run, metrics['client'][run], skipped[run])
    self.client_values[_SKIPPED] = counts[:, :-1].tolist()

  def _add_clusters(
    self, metrics: Any, num_clients: int, active: np.ndarray
  ) -> None:
    """Notes each client's last cluster, `[R, M]`; None before its first one."""
    client, cluster = metrics['client'], metrics[clusters.CLUSTER]
    known = np.full((len(client), num_clients + 1), np.nan)  # Padding is last.
    if clusters.CLUSTER in self.client_values:
      known[:, :-1] = self.client_values[clusters.CLUSTER]
    for run in np.flatnonzero(active):
      of_run = known[run]
      for clients, numbers in zip(client[run], cluster[run], strict=True):
        of_run[clients] = numbers
    self.client_values[clusters.CLUSTER] = to_json(known[:, :-1])

  def add_evaluation(
    self,
    round_number: int,
    split: str,
    metrics: Any,
    own_metrics: Mapping[str, Any] = types.MappingProxyType({}),
  ) -> None:
    """Adds what `Program.evaluate` returned for a split.

    Args:
      round_number: After which it was evaluated.
      split: `validation` or `test`.
      metrics: `[R, ...]`, by view.
      own_metrics: Of `results.own_metrics`.
    """
    factor_of = lambda name: (
      100.0
      if name != 'count' and results.in_percent(name, [own_metrics])
      else 1.0
    )
    if not self.rounds or self.rounds[-1] != round_number:
      self.rounds.append(round_number)
    for view in ('pooled', 'client'):
      for name, value in metrics[view].items():
        factor = factor_of(name)
        values = self.values.setdefault(f'{split}/{view}/{name}', [])
        values.append(to_json(factor * value))
    for name, value in metrics['each'].items():
      factor = factor_of(name)
      self.client_values[f'{split}/{name}'] = to_json(factor * value)

  def last(self, name: str, active: np.ndarray | None = None) -> float:
    """The mean over runs of the last value over all tasks.

    Args:
      name: Of a curve.
      active: `[R]` bool, the runs that count; by default all. If one of them
        has no value, the mean is NaN: that of the others is about something
        else.
    """
    of_runs = np.array([v[-1] for v in self.values[name][-1]], np.float64)
    of_runs = of_runs if active is None else of_runs[active]
    return float(of_runs.mean()) if of_runs.size else float('nan')

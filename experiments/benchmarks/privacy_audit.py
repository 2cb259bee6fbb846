"""Audits private rounds: what an attacker finds, against what is claimed.

python -m experiments.benchmarks.privacy_audit --out=DIR

Whole rounds of the library run thousands of times, with a canary and without
it, for each noise multiplier; an attacker who sees the server's parameters
after every round says which it was (`fmtl_jax.privacy.auditing`). Its bounds
have to be below the epsilon that is claimed for this noise, and the same bounds
refute a claim for twice the noise: the audit can fail. One more training has
a thousand canaries at once. Bounds are lower bounds, for this attacker and so
many trials. It takes about five minutes on two cores.
"""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any

from absl import flags

from ..console import command_line
from ..console import programs

_OUT = command_line.define_path('out', 'The folder of the figure.', None)
_NOISES = flags.DEFINE_list(
  'noise_multipliers', ['1', '2', '4', '8'], 'Each twice the one before it.'
)
_ROUNDS = flags.DEFINE_integer('rounds', 4, 'Of each training.', 1)
_TRIALS = flags.DEFINE_integer('trials', 6000, 'Trainings of each kind.', 12)
_CLIENTS = flags.DEFINE_integer('clients', 12, 'With the canary.', 4)
_CANARIES = flags.DEFINE_integer('canaries', 1000, 'Of the single run.', 10)
_SAMPLING = flags.DEFINE_enum(
  'sampling', 'poisson', ['poisson', 'fixed'], 'How cohorts are drawn.'
)
_PER_TASK = flags.DEFINE_integer(
  'clients_per_task', 0, 'Expected of each task in a round; 0 for all.', 0
)
_CLIP = flags.DEFINE_float('clipping_norm', 1.0, 'Of updates.')
_DELTA = flags.DEFINE_float('delta', 1e-5, 'Of (epsilon, delta).')
_SEED = flags.DEFINE_integer('seed', 0, 'Of all draws.')
flags.mark_flag_as_required('out')

_GAUSSIAN = 'bound, if Gaussian'


def settings(noise: float) -> Any:
  """The rounds that are audited, with a noise multiplier."""
  from fmtl_jax import RoundSettings
  from fmtl_jax import privacy

  return RoundSettings(
    clients_per_task=_PER_TASK.value,
    privacy=privacy.ClientPrivacy(
      clipping_norm=_CLIP.value,
      noise_multiplier=noise,
      sampling=_SAMPLING.value,
      delta=_DELTA.value,
    ),
  )


def claimed(noise: float) -> float:
  """The epsilon of the ledger, of the larger task group."""
  from fmtl_jax.privacy import accounting

  kind = (
    accounting.Poisson if _SAMPLING.value == 'poisson' else accounting.Fixed
  )
  sampling = kind(rate=_rate())
  return accounting.epsilon(noise, sampling, _ROUNDS.value, _DELTA.value)


def _rate() -> float:
  """How likely the canary takes part in a round."""
  group = math.ceil(_CLIENTS.value / 2)
  return min(1.0, (_PER_TASK.value or group) / group)


def audited(noise: float) -> dict[str, float]:
  """Lower bounds of epsilon of rounds with a noise multiplier."""
  from . import canaries
  from fmtl_jax.privacy import auditing

  of_rounds = settings(noise)
  found = [
    canaries.releases(
      of_rounds,
      has_canary=has_canary,
      rounds=_ROUNDS.value,
      trials=_TRIALS.value,
      clients=_CLIENTS.value,
      seed=_SEED.value,
    )
    for has_canary in (True, False)
  ]
  scores = auditing.linear_scores(*found)
  if _PER_TASK.value:
    scores = auditing.sampled_scores(*found, rounds=_ROUNDS.value, rate=_rate())
  bound = auditing.lower_bound(*scores, delta=_DELTA.value)
  single = canaries.one_run(
    of_rounds,
    rounds=_ROUNDS.value,
    canaries=_CANARIES.value,
    seed=_SEED.value,
  )
  one_run = auditing.one_run_bound(*single, delta=_DELTA.value)
  return {**bound._asdict(), 'one_run': one_run}


def draw(
  path: pathlib.Path,
  claims: Mapping[float, float],
  rows: Mapping[float, Mapping[str, float]],
) -> None:
  """Draws claims and bounds by noise multiplier.

  Args:
    path: Of the figure.
    claims: Epsilon by noise multiplier.
    rows: Bounds by noise multiplier, as of `audited`.
  """
  from ..reporting import drawing

  noises = sorted(rows)
  with drawing.figure(path, height=3.6) as figure:
    axes = figure.subplots()
    curve = lambda name: [rows[noise][name] for noise in noises]
    lines = (
      ('claimed', [claims[noise] for noise in noises], drawing.COLORS[-1], '-'),
      (
        'claimed for twice the noise',
        [claims[2 * n] for n in noises],
        drawing.GREY,
        '--',
      ),
      (_GAUSSIAN, curve('gaussian'), drawing.BLUE, 'o'),
      ('bound, of any mechanism', curve('epsilon'), drawing.RED, 's'),
      ('bound of one run', curve('one_run'), drawing.GREEN, '^'),
      (
        'largest that trials can show',
        curve('ceiling'),
        drawing.LIGHT_GREY,
        ':',
      ),
    )
    for label, values, color, style in lines:
      if _PER_TASK.value and label == _GAUSSIAN:
        continue  # Rounds of sampled clients are not.
      axes.plot(noises, values, style, color=color, label=label)
    axes.set_xscale('log', base=2)
    axes.set_yscale('log')
    axes.set_xticks(noises, [f'{noise:g}' for noise in noises])
    axes.set_xlabel('noise multiplier')
    axes.set_ylabel('epsilon')
    figure.legend(loc='outside right center')
    drawing.title(figure, 'What an attacker finds in private rounds')


def main() -> int:
  """Prints claims and bounds, and writes a figure and its numbers."""
  from . import outputs
  from ..folders import environments

  folder = pathlib.Path(_OUT.value or '')
  noises = sorted(float(x) for x in _NOISES.value)
  claims = {noise: claimed(noise) for n in noises for noise in (n, 2 * n)}
  rows = {}
  for noise in noises:
    rows[noise] = audited(noise)
    shown = ', '.join(f'{k} {v:.3g}' for k, v in rows[noise].items())
    print(f'noise {noise:g}: claimed {claims[noise]:.3g}, {shown}', flush=True)
  folder.mkdir(parents=True, exist_ok=True)
  draw(folder / 'privacy_audit.png', claims, rows)
  names = (
    *('rounds', 'trials', 'clients', 'canaries', 'sampling'),
    *('clients_per_task', 'clipping_norm', 'delta', 'seed'),
  )
  outputs.write(
    {
      'claimed': claims,
      'rows': rows,
      'refuted': [n for n in noises if refutes(rows[n], claims[n])],
      'refutes_twice_the_noise': [
        n for n in noises if refutes(rows[n], claims[2 * n])
      ],
      'config': {name: flags.FLAGS[name].value for name in names},
      'environment': environments.environment(),
    },
    str(folder / 'privacy_audit.json'),
  )
  return 0


def refutes(row: Mapping[str, float], claim: float) -> bool:
  """Whether a bound is above a claim.

  The bound of a Gaussian mechanism counts where all clients are in all rounds:
  sampled ones are not Gaussian.
  """
  counted: Sequence[float] = [row['epsilon'], row['one_run']]
  if not _PER_TASK.value:
    counted = [*counted, row['gaussian']]
  return max(counted) > claim


if __name__ == '__main__':
  programs.run(main)

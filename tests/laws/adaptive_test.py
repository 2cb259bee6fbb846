"""Adaptive server optimizers against the loops of their paper."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np
import optax

from fmtl_jax import testing
from fmtl_jax.algorithms import adaptive
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers

import cases
import naive

BUILDS = {
  'adagrad': adaptive.fedadagrad,
  'adam': adaptive.fedadam,
  'yogi': adaptive.fedyogi,
}


class Adaptive:
  """Lines 9 to 13 of Algorithm 2 for the owners of one layer type."""

  def __init__(self, kind, rate, beta1, beta2, tau):
    self.kind, self.rate, self.beta1, self.beta2 = kind, rate, beta1, beta2
    self.tau, self.states = tau, {}

  def changes(self, owner, mean, unused_number):
    """The changes of all leaves of one owner, by leaf."""
    first, second = self.states.setdefault(owner, ({}, {}))
    changes = {}
    for leaf, delta in mean.items():
      old = second.get(leaf, np.full_like(delta, self.tau**2))
      first[leaf] = self.beta1 * first.get(leaf, 0) + (1 - self.beta1) * delta
      second[leaf] = {
        'adagrad': old + delta**2,
        'adam': self.beta2 * old + (1 - self.beta2) * delta**2,
        'yogi': old - (1 - self.beta2) * delta**2 * np.sign(old - delta**2),
      }[self.kind]
      changes[leaf] = (
        self.rate * first[leaf] / (np.sqrt(second[leaf]) + self.tau)
      )
    return changes


@dataclasses.dataclass
class FedOpt(naive.Federation):
  """Federated averaging with an adaptive server."""

  kind: str = ''
  server_learning_rate: float = 0.01
  beta1: float = 0.9
  beta2: float = 0.99
  tau: float = 1e-3

  def __post_init__(self):
    super().__post_init__()
    self.servers = {
      name: Adaptive(
        self.kind,
        self.server_learning_rate * self.servers.get(name, naive.Sgd()).rate,
        self.beta1,
        self.beta2,
        self.tau,
      )
      for name in ('common', 'task')
    }


def _one_round(build, local, **own):
  """What a round changes, of a federation that starts anywhere."""
  federation, data = cases.toy_federation(('common', 'task'))
  algorithm = build(federation, local, **own)
  start, new, *_ = cases.run(algorithm, data)
  return jax.tree.map(np.subtract, new.params, start.params)


@functools.cache
def _scaled_rounds(build, tau):
  """What a round changes with local steps of the usual and four times the size.

  Args:
    build: The algorithm.
    tau: Of the first, for an algorithm that has it; it is scaled, too.
  """
  federation, data = cases.toy_federation(('common', 'task'))

  @testing.jit
  def change(factor):
    local = local_optimizers.LocalSgd(learning_rate=0.1 * factor, batch_size=0)
    own = {} if tau is None else {'tau': tau * factor}
    algorithm = build(federation, local, **own)
    state = cases.start(algorithm, data)
    new, _ = algorithm.round(state, data)
    return jax.tree.map(lambda x, y: x - y, new.params, state.params)

  return [jax.device_get(change(np.float32(factor))) for factor in (1, 4)]


class AdaptiveTest(parameterized.TestCase):
  @parameterized.parameters(*BUILDS)
  def test_rounds_are_those_of_the_paper(self, kind):
    """With its defaults; FedAdagrad has no momentum and a larger step."""
    defaults = {'server_learning_rate': 0.1, 'beta1': 0.0}
    cases.compare(
      ('common', 'common'),
      cases.toy_data(7, 3),
      local=cases.Local(batch_size=2),
      clients_per_task=(2, 1, 2),
      rounds=4,
      build=BUILDS[kind],
      reference=functools.partial(
        FedOpt, kind=kind, **(defaults if kind == 'adagrad' else {})
      ),
    )

  @parameterized.parameters('adam', 'yogi')
  def test_any_layer_types_and_owners_nobody_reports_to(self, kind):
    """Where v falls as well as rises; rates of layer types multiply."""
    own = {'server_learning_rate': 0.2, 'beta1': 0.6, 'beta2': 0.7, 'tau': 0.1}
    cases.compare(
      ('common', 'task', 'personal'),
      cases.partly_labelled(),
      local=cases.Local(rate=0.1, batch_size=3),
      clients_per_task=1,
      servers={'task': cases.Server(optax.sgd, 0.5, naive.Sgd(0.5))},
      rounds=5,
      build=BUILDS[kind],
      reference=functools.partial(FedOpt, kind=kind),
      own=own,
    )

  @parameterized.parameters(*BUILDS)
  def test_steps_do_not_depend_on_the_scale_of_updates(self, kind):
    """Those of four times the size, and tau, make the same step."""
    moved, plain = (
      dict(zip((1, 4), _scaled_rounds(build, tau), strict=True))
      for build, tau in (
        (BUILDS[kind], 1e-3),
        (multi_task_fl.multi_task_fl, None),
      )
    )
    testing.assert_trees_close(moved[4], moved[1], 1e-4)
    testing.assert_trees_close(
      plain[4], jax.tree.map(lambda x: 4 * x, plain[1]), 1e-4
    )

  def test_with_a_large_tau_it_is_fedavg(self):
    """sqrt(v) + tau is 2 tau then, or tau where v forgets its first value."""
    local = local_optimizers.LocalSgd(batch_size=2)
    plain = _one_round(multi_task_fl.multi_task_fl, local)
    for kind, own in (
      ('adagrad', {'server_learning_rate': 2e3}),
      ('adam', {'server_learning_rate': 1e3, 'beta1': 0.0, 'beta2': 0.0}),
      ('yogi', {'server_learning_rate': 2e3, 'beta1': 0.0}),
    ):
      found = _one_round(BUILDS[kind], local, tau=1e3, **own)
      testing.assert_trees_close(found, plain, 1e-3)

  @parameterized.parameters(
    ({'tau': 0.0}, 'Expected `tau` > 0'),
    ({'beta1': 1.0}, r'Expected `beta1` in \[0, 1\)'),
    ({'beta2': -0.5}, r'Expected `beta2` in \[0, 1\)'),
  )
  def test_a_number_out_of_range_is_refused(self, own, sentence):
    federation, _ = cases.toy_federation(('common', 'common'))
    with self.assertRaisesRegex(ValueError, sentence):
      adaptive.fedadam(federation, **own)

  def test_another_server_optimizer_is_refused(self):
    federation, _ = cases.toy_federation(('common', 'common'))
    server = {'common': server_optimizers.ServerOptimizer(optax.yogi)}
    with self.assertRaisesRegex(ValueError, 'with fedyogi, which is a server'):
      adaptive.fedyogi(
        federation, settings=round_settings.RoundSettings(server=server)
      )


if __name__ == '__main__':
  absltest.main()

"""Laws of relations: a matrix over owners, whose numbering is arbitrary."""

import dataclasses
import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

import fmtl_jax
from fmtl_jax import adaptation
from fmtl_jax import algorithms
from fmtl_jax import testing

import cases
import renumbering

# As in a row of the table; more for which the toy is another one.
OWN = {
  'cfl': {'eps1': 100.0, 'eps2': 0.0},
  'nearest': {'graph': 'nearest:2'},
  **dict.fromkeys(cases.LINEAR, {'every': 1}),
}
CLIENTS = 6


@functools.cache
def _data():
  return cases.toy_data(CLIENTS, 3, missing=0.3)


def _built(name, data):
  """`nearest` is FedU with another graph."""
  return cases.named(
    'fedu' if name == 'nearest' else name,
    data,
    own=OWN.get(name),
    **cases.ROUND.get(name, {}),
  )


NAMES = [
  name
  for name in (*algorithms.ALGORITHMS, 'nearest')
  if _built(name, _data())[2].relations is not None
]


class OwnerRelationsTest(parameterized.TestCase):
  def test_these_algorithms_relate_owners(self):
    self.assertContainsSubset(['cfl', 'fedu'], NAMES)
    self.assertNotIn('fedavg', NAMES)

  @parameterized.parameters(*NAMES)
  def test_they_are_a_matrix_that_follows_its_owners(self, name):
    federation, data, algorithm = _built(name, _data())
    order = np.array([3, 0, 5, 1, 4, 2])
    start = cases.start(algorithm, data)
    step = testing.jit(algorithm.round)
    turned = dataclasses.replace(
      start,
      params=functools.reduce(
        lambda params, name: renumbering.take(federation, params, name, order),
        ('client', 'decoder', 'personal'),
        start.params,
      ),
      clients=cases.rows(start.clients, order),
    )
    other_data = renumbering.permute_clients(data, order)
    for _ in range(2):
      found = np.asarray(algorithm.relations(start))
      self.assertIn(found.shape, [(CLIENTS,) * 2, (len(data.tasks),) * 2])
      self.assertTrue(np.isfinite(found).all())
      start, _ = step(start, data)
      turned, _ = step(turned, other_data)
    found = np.asarray(algorithm.relations(start))
    off = ~np.eye(len(found), dtype=bool)
    self.assertGreater(np.abs(found[off]).max(), 0)
    if len(found) == CLIENTS and name != 'fedu':
      self.assertGreater(np.ptp(found[off]), 0)
      found = found[np.ix_(order, order)]
    np.testing.assert_allclose(
      np.asarray(algorithm.relations(turned)), found, rtol=1e-3, atol=1e-5
    )

  def test_held_out_clients_leave_them(self):
    federation, _, algorithm = _built('nearest', _data())
    trained = jax.tree.map(lambda _: True, federation.labels)
    adapted = adaptation.adapted(
      algorithm,
      federation,
      adaptation.Adaptation(fmtl_jax.LocalSgd(), trained),
      None,
      1,
    )
    self.assertIs(adapted.relations, algorithm.relations)

  def test_what_is_fitted_has_those_of_each_seed(self):
    federation, data, algorithm = _built('nearest', _data())
    step = testing.jit(algorithm.round)
    states = [
      step(cases.start(algorithm, data, seed), data)[0] for seed in (3, 0)
    ]
    none = np.zeros((2, 0))
    result = fmtl_jax.FitResult(
      federation=federation,
      algorithm=algorithm,
      data=data,
      seeds=(3, 0),
      state=jax.tree.map(lambda *x: jnp.stack(x), *states),
      rounds=none[0],
      train_loss=none,
      history={},
      each={},
      seconds=0.0,
      compile_seconds=0.0,
      interrupted=False,
    )
    expected = [algorithm.relations(state) for state in states]
    np.testing.assert_array_equal(result.relations, expected)
    self.assertGreater(np.abs(expected[0] - expected[1]).max(), 0)
    _, _, others = _built('fedavg', _data())
    self.assertIsNone(dataclasses.replace(result, algorithm=others).relations)


if __name__ == '__main__':
  absltest.main()

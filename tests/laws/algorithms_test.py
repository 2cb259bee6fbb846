"""Law: every algorithm gives the same numbers in every form, on any devices."""

import functools

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from fmtl_jax import testing
from fmtl_jax.rounds import round_settings

import cases

testing.use_cpu_devices(8)

AXIS = 'client'
# A form and a number of devices, none for 0. Every algorithm has both of a
# composed form; each form alone has algorithms of unlike code.
COMPOSED = ('low_rank:2', 2)
DENSE = ('chunk:2', 2)
ALONE = (
  ('multi_task_fl', 'low_rank:3', 0),
  ('fedsgd', 'low_rank:3', 0),
  ('multi_task_fl', 'chunk:2', 0),
  ('per_fedavg', 'chunk:2', 0),
  ('ifca', 'vmap', 0),
  ('scaffold', 'vmap', 0),
  ('fedbn', 'scan', 3),
  ('ditto', 'scan', 3),
)


@functools.cache
def _build(name, form, devices):
  """Federation, data and algorithm; no mesh for 0 devices."""
  return cases.named(
    name,
    testing.toy_data(5, 3),
    placement=round_settings.Placement(
      execution=form,
      low_rank_below=np.inf,
      client_axis=AXIS if devices else None,
    ),
    normalization='batch' if name == 'fedbn' else 'none',
    **{'clients_per_task': 1, **cases.ROUND.get(name, {})},
  )


@functools.cache
def _run(name, form, devices):
  """State and metrics after two rounds."""
  _, data, algorithm = _build(name, form, devices)
  return cases.two_rounds(algorithm, data, devices, AXIS)


class AlgorithmsTest(parameterized.TestCase):
  @parameterized.named_parameters((name, name) for name in cases.distinct())
  def test_a_form_on_devices_agrees_with_scan(self, name):
    """Factored where something can be; else it says why not."""
    form = COMPOSED
    _, data, algorithm = _build(name, *form)
    if algorithm.form(data)[0] == 'scan':
      reasons = dict(algorithm.form(data)[1])
      self.assertStartsWith(reasons.pop(form[0]), 'not taken, scan is: ')
      for reason in reasons.values():
        self.assertStartsWith(reason, 'not factored')
      form = DENSE
    cases.assert_rounds_close(_run(name, *form), _run(name, 'scan', 0))

  @parameterized.parameters(*ALONE)
  def test_a_form_alone_agrees_with_scan(self, name, form, devices):
    _, data, algorithm = _build(name, form, devices)
    self.assertEqual(algorithm.form(data)[0], form)
    cases.assert_rounds_close(_run(name, form, devices), _run(name, 'scan', 0))

  def test_evaluation_on_devices_agrees(self):
    """Of each code of views, and each set of layer types, the first one.

    What models answer, and the summary, does not depend on the algorithm but by
    how many models there are: all stages have one algorithm of each kind.
    """
    names = {}
    for name in cases.distinct():
      federation, _, algorithm = _build(name, 'scan', 0)
      seen = (
        algorithm.view.__code__,
        frozenset(jax.tree.leaves(federation.layer_types)),
        frozenset(federation.num_owners.items()),
        federation.has_statistics,
      )
      names.setdefault(seen, name)
    self.assertContainsSubset(
      ('isolated', 'fedsgd', 'fedbn', 'ifca', 'fedast', 'pfedme'),
      names.values(),
    )
    for name in names.values():
      with self.subTest(name):
        state, _ = _run(name, 'scan', 0)
        whole = name in ('fedsgd', 'fedbn')  # Not personal, and personal.
        evaluate = cases.evaluated if whole else cases.models_of
        found = []
        for devices in (3, 0):
          federation, data, algorithm = _build(name, 'scan', devices)
          found.append(
            evaluate(algorithm, federation, state, data, devices, AXIS)
          )
        testing.assert_trees_close(*found, 1e-4, 1e-5)

  @parameterized.named_parameters((name, name) for name in cases.distinct())
  def test_rounds_train_and_stay_finite(self, name):
    state, metrics = _run(name, 'scan', 0)
    _, data, algorithm = _build(name, 'scan', 0)
    trained = (state.params, state.clients)
    first = cases.start(algorithm, data)
    changes = [
      np.abs(np.subtract(x, y, dtype=float)).max()
      for x, y in zip(
        jax.tree.leaves(trained),
        jax.tree.leaves((first.params, first.clients)),
        strict=True,
      )
    ]
    self.assertTrue(np.isfinite(changes).all())
    self.assertGreater(max(changes), 1e-3)
    self.assertTrue(np.isfinite(metrics['loss_sum']).all())


if __name__ == '__main__':
  absltest.main()

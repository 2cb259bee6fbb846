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
FORMS = (('vmap', 0), ('chunk:2', 0), ('low_rank:3', 0), ('scan', 3))


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
  @parameterized.named_parameters(
    (f'{name}_{"_".join(map(str, form))}', name, form)
    for name in cases.distinct()
    for form in FORMS
  )
  def test_every_form_agrees_with_scan(self, name, form):
    _, data, algorithm = _build(name, *form)
    if form != FORMS[-1] and algorithm.form(data)[0] == 'scan':
      # Nothing can be factored, and says why: it is the same program.
      reasons = dict(algorithm.form(data)[1])
      self.assertStartsWith(reasons.pop(form[0]), 'not taken, scan is: ')
      for reason in reasons.values():
        self.assertStartsWith(reason, 'not factored')
      return
    cases.assert_rounds_close(_run(name, *form), _run(name, 'scan', 0))

  def test_evaluation_on_devices_agrees(self):
    """Of each code of views, and each set of layer types, the first one."""
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
      ('isolated', 'fedsgd', 'fedbn', 'ifca', 'multi_task_fl', 'pfedme'),
      names.values(),
    )
    for name in names.values():
      with self.subTest(name):
        state, _ = _run(name, 'scan', 0)
        found = []
        for devices in (3, 0):
          federation, data, algorithm = _build(name, 'scan', devices)
          found.append(
            cases.evaluated(algorithm, federation, state, data, devices, AXIS)
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

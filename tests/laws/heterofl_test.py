"""HeteroFL: slices of networks, entrywise means, and what is held by whom."""

import dataclasses

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import cohorts
from fmtl_jax import federation as federation_lib
from fmtl_jax import models
from fmtl_jax import testing
from fmtl_jax.algorithms import heterofl
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.cohorts import participation
from fmtl_jax.federation import layer_types
from fmtl_jax.federation import widths
from fmtl_jax.rounds import communication
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import aggregators

import cases

FIXED_POINT = 'nowhere in general: slices of an optimum are not optimal'

LOCAL = cases.Local(rate=0.1, momentum=0.5, batch_size=2, epochs=2)
TYPES = ('common', 'common', 'task')


def _toy(num_clients=6, num_slots=1):
  data = testing.toy_data(num_clients, 3, num_slots)
  return testing.toy_federation(TYPES, data)


def _cuts(federation):
  return widths.derive(federation.shapes, federation.use_order)


class WidthsTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('mlp', models.mlp((6,), (5, 4), 3), (6,), 0.5),
    ('cnn', models.cnn((4, 4, 2), (6,), (5,), 3), (4, 4, 2), 0.4),
    ('tanh', testing.mlp((6, 5, 4, 3)), (6,), 0.7),
  )
  def test_the_narrow_network_is_the_whole_one_with_zeros(
    self, model, shape, fraction
  ):
    init, apply = model[0], model[1]
    shapes = jax.eval_shape(init, jax.random.key(0))
    features = np.random.default_rng(0).normal(size=(7, *shape))
    features = features.astype(np.float32)
    cuts = widths.derive(shapes, layer_types.use_order(apply, shapes, features))

    @testing.jit
    def run(key, features):
      params = init(key)
      mask = widths.masks(cuts, params, fraction)
      small = widths.sliced(cuts, params, fraction)
      zeros = jax.tree.map(lambda held, x: jnp.where(held, x, 0), mask, params)
      outputs = [apply(given, features) for given in (small, zeros, params)]
      return small, mask, outputs

    small, mask, outputs = jax.device_get(run(jax.random.key(0), features))
    for kept, held in zip(
      jax.tree.leaves(small), jax.tree.leaves(mask), strict=True
    ):
      self.assertEqual(kept.size, int(held.sum()))
    found, with_zeros, whole = outputs
    np.testing.assert_allclose(with_zeros, found, 1e-5, 1e-5)
    self.assertGreater(np.abs(found - whole).max(), 1e-2)

  def test_networks_that_say_nothing_about_widths_are_refused(self):
    kernel = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    for shapes, message in (
      ({'a': {'k': kernel(2, 3), 'l': kernel(3, 3)}}, "'a' has 2"),
      ({'a': {'k': kernel(2, 3), 'b': kernel(2)}}, r"'a/b' has the shape \(2,"),
      ({'a': {'k': kernel(2, 3)}, 'b': {'k': kernel(4, 1)}}, "'b/k' has 4 in"),
    ):
      with self.assertRaisesRegex(ValueError, message):
        widths.derive(shapes, layer_types.paths(shapes))


class MeansTest(absltest.TestCase):
  def test_an_entry_is_averaged_over_those_that_hold_it(self):
    """One that nobody holds does not move."""
    federation, data = _toy(3)
    devices = heterofl.Devices(
      federation, (0.75, 0.5, 0.25), (), (0, 1, 1), class_seed=0
    )
    rng = np.random.default_rng(0)
    weights = np.float32([2, 3, 5])
    cuts = _cuts(federation)
    masks_of = lambda f: widths.masks(cuts, federation.shapes, f)
    masks = testing.jit(lambda: [masks_of(f) for f in (0.75, 0.5, 0.5)])()
    masks = jax.tree.map(lambda *x: np.stack(x), *masks)
    updates = jax.tree.map(
      lambda mask: np.float32(np.where(mask, rng.normal(size=mask.shape), 0)),
      masks,
    )
    of_type = lambda tree: federation.of_type('common', tree)
    clients = aggregators.Clients(
      cohorts.everyone(data), jnp.asarray(weights), None, None
    )
    mean = heterofl.entrywise_mean(devices)
    params = of_type(federation.shapes)

    @testing.jit
    def run(updates):
      total = mean.add(mean.init(params, None), updates, clients, params)
      return mean.finish(jax.random.key(0), total, (), clients)

    found = jax.device_get(run(of_type(updates)))
    for layer in ('layer_0', 'layer_1'):
      for name in ('kernel', 'bias'):
        update, mask = updates[layer][name], masks[layer][name]
        for place in np.ndindex(update.shape[1:]):
          held = [i for i in range(3) if mask[(i, *place)]]
          whole = sum(weights[i] for i in held)
          expected = sum(weights[i] * update[(i, *place)] for i in held)
          self.assertAlmostEqual(
            float(found[layer][name][place]),
            expected / whole if held else 0.0,
            places=5,
          )
    self.assertEqual(float(found['layer_0']['bias'][3]), 0)


class HeteroFLTest(parameterized.TestCase):
  def test_with_whole_networks_it_is_federated_averaging(self):
    federation, data = _toy(num_slots=2)
    found, expected = (
      cases.train(
        build, federation, data, LOCAL.package(), 3, own, clients_per_task=1
      )
      for build, own in (
        (heterofl.heterofl, {'fractions': (1.0, 1.0)}),
        (multi_task_fl.multi_task_fl, {}),
      )
    )
    testing.assert_trees_close(found[0].params, expected[0].params, 1e-6, 1e-6)
    testing.assert_trees_close(found[1], expected[1], 1e-6, 1e-6)

  def test_clients_train_the_network_that_is_as_narrow(self):
    """With the scaler: hidden layers put out twice as much in training."""
    federation, data = _toy(3)
    fraction, local = 0.5, LOCAL.package()
    algorithm = heterofl.heterofl(federation, local, fractions=(fraction,))
    start = cases.start(algorithm, data)
    found = cases.run(algorithm, data, 2, start).state.params
    cuts = _cuts(federation)

    def apply(params, x):
      for i in range(3):
        layer = params[f'layer_{i}']
        x = jnp.tanh(x) if i else x
        x = x @ layer['kernel'] + layer['bias'][None]
        x = x / fraction if i < 2 else x
      return x

    def small(params):
      """Layers of all owners as narrow: those of tasks have an axis more."""
      common = {k: params[k] for k in ('layer_0', 'layer_1')}
      of_task = lambda x: {**common, 'layer_2': x}
      cut = lambda x: widths.sliced(cuts, of_task(x), fraction)
      every = [
        cut(jax.tree.map(lambda x, t=t: x[t], params['layer_2']))
        for t in range(3)
      ]
      heads = jax.tree.map(
        lambda *x: jnp.stack(x), *(x['layer_2'] for x in every)
      )
      return {**every[0], 'layer_2': heads}

    narrow = federation_lib.Federation.create(
      (
        lambda key: widths.sliced(cuts, federation.init_fn(key), fraction),
        apply,
      ),
      [(f'layer_{i}/.*', label) for i, label in enumerate(TYPES)],
      data,
    )
    plain = multi_task_fl.multi_task_fl(narrow, local)
    own = dataclasses.replace(
      cases.start(plain, data), params=testing.jit(small)(start.params)
    )
    expected = cases.run(plain, data, 2, own).state.params
    found_small = testing.jit(small)(found)
    testing.assert_trees_close(found_small, expected, 1e-4, 1e-5)
    held = widths.masks(cuts, federation.shapes, fraction)
    for layer in ('layer_0', 'layer_1'):  # What nobody holds never moves.
      for name, mask in held[layer].items():
        old, new = (np.asarray(x[layer][name]) for x in (start.params, found))
        np.testing.assert_array_equal(old[~mask], new[~mask])
        self.assertTrue((old[np.asarray(mask)] != new[mask]).all())

  def test_clients_predict_with_what_they_hold_and_are_charged_for_it(self):
    federation, data = _toy(4)
    classes = (0, 1, 1, 1)
    algorithm = heterofl.heterofl(
      federation, LOCAL.package(), fractions=(1.0, 0.25), classes=classes
    )
    state = cases.start(algorithm, data)
    views = cases.views_of(algorithm, state, data)
    kernel = np.asarray(views['layer_1']['kernel'])
    self.assertEqual((kernel != 0).sum((1, 2)).tolist(), [16, 1, 1, 1])
    # 3 x 4 + 4, 4 x 4 + 4 and, with five outputs, 4 x 5 + 5 values.
    whole, quarter = (16 + 20, 25), (4 + 2, 10)
    found = heterofl.Devices(federation, (1.0, 0.25), (), classes, 0).classes()
    self.assertEqual(
      [(x.share, x.bytes_once // 4, x.bytes_each_slot // 4) for x in found],
      [(0.25, *whole), (0.75, *quarter)],
    )
    messages = algorithm.messages()
    mean = [0.25 * a + 0.75 * b for a, b in zip(whole, quarter, strict=True)]
    for message in (messages.up, messages.down):
      once, each = communication.message_bytes(federation, message)
      self.assertAlmostEqual(once['common'], 4 * mean[0], delta=8)
      self.assertAlmostEqual(each['task'], 4 * mean[1], delta=8)

  def test_small_devices_need_less_time(self):
    """Seconds of messages and of steps as sizes say, against their means."""
    data = cases.toy_data(4, 1, sizes=(4,))
    federation, _ = testing.toy_federation(TYPES, data)
    devices = heterofl.Devices(federation, (1.0, 0.25), (), (0, 0, 1, 1), 0)
    taken = participation.Participation(
      clock=participation.Clock(
        bytes_once=1e3, bytes_per_second=1e3, batch_size=2, epochs=1
      )
    )
    taken = participation.relative_to(taken, devices.costs)

    @testing.jit
    def run(key, data):
      return participation.apply_participation(
        taken, key, jnp.int32(0), cohorts.everyone(data), 4
      )[1]

    metrics = run(jax.random.key(0), data)
    sizes = [x.parameters for x in devices.classes()]
    mean = np.mean(sizes)
    expected = [s / mean + 0.02 * s / sizes[0] for s in sizes]
    np.testing.assert_allclose(
      metrics['simulated_seconds'], np.repeat(expected, 2), rtol=1e-5
    )

  def test_drawn_classes_are_as_frequent_as_asked_for(self):
    federation, _ = _toy()
    devices = heterofl.Devices(federation, (1.0, 0.5), (0.3, 0.7), (), 5)
    client = jax.tree.map(lambda x: x[0], cohorts.everyone(_toy()[1]))

    def fraction(number):
      return devices.fraction(dataclasses.replace(client, client_id=number))

    run = testing.jit(jax.vmap(fraction))
    found = np.asarray(run(np.arange(2000, dtype=np.uint32)))
    self.assertAlmostEqual((found == 1).mean(), 0.3, delta=0.04)

  @parameterized.parameters(
    ({'fractions': ()}, {}, r'`fractions` to be numbers in \(0, 1\]'),
    ({'fractions': (1.5,)}, {}, r'`fractions` .*got \(1.5,\)'),
    ({'shares': (1.0,)}, {}, '`shares` .*; there are 3 classes'),
    (
      {'classes': (0, 1)},
      {},
      '`classes` .*; there are 6 clients and 3 classes',
    ),
    (
      {},
      {'reducer': {'common': jnp.median}},
      r"`reducer\['common'\]` to be le",
    ),
  )
  def test_what_does_not_fit_is_refused(self, own, settings, message):
    with self.assertRaisesRegex(ValueError, message):
      heterofl.heterofl(
        _toy()[0],
        settings=round_settings.RoundSettings(**settings),
        **own,
      )


if __name__ == '__main__':
  absltest.main()

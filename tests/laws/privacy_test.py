"""Laws of private rounds: sensitivity, noise, cohorts, what is refused."""

import dataclasses
import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from fmtl_jax import algorithms
from fmtl_jax import balancing
from fmtl_jax import cohorts
from fmtl_jax import compression
from fmtl_jax import privacy
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import clipping
from fmtl_jax.cohorts import poisson
from fmtl_jax.privacy import ledgers
from fmtl_jax.privacy import noise_keys
from fmtl_jax.rounds import private_rounds
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import robust_aggregators
from fmtl_jax.server import servers

import cases

MIX = ('common', 'task', 'personal')
CLIENTS, TASKS = 9, 3
UNIFORM = dict.fromkeys(('common', 'task'), 'uniform')
REFUSED = {
  'cfl': 'other clusters',
  'cocoa': 'both sums drift apart',
  'fedast': 'which draw no cohort',
  'fedbuff': 'which draw no cohort',
  'heterofl': 'averaged entry by entry',
  'fedamp': 'client layers with a copy for each client',
  'feddyn': 'both sums drift apart',
  'fedhca2': 'client layers with a copy for each client',
  'fednova': 'send more than an update',
  'fedproto': 'takes the mean of each class',
  'fedu': 'send more than an update',
  'ifca': 'other clusters',
  'mat_fl': 'client layers with a copy for each client',
  'mocha': 'both sums drift apart',
  'mt_fedavg': "'uniform'",
  'scaffold': 'a mean over all clients',
  'virtual': 'both sums drift apart',
}


def private(**settings):
  return privacy.ClientPrivacy(**{'sampling': 'fixed'} | settings)


def plain_round(data, types=MIX, execution='vmap', **settings):
  """Rounds of `multi_task_fl`, and the federation."""
  federation, _ = testing.toy_federation(types, data)
  placement = round_settings.Placement(
    execution=execution, low_rank_below=np.inf
  )
  rounds = round_settings.RoundSettings(placement=placement, **settings)
  local = cases.Local(rate=0.1, momentum=0.5, batch_size=2)
  algorithm = multi_task_fl.multi_task_fl(federation, local.package(), rounds)
  return algorithm, federation


def sent(federation, new, old):
  """What the server added to the layers that are averaged."""
  return jax.tree.map(
    jnp.subtract, federation.averaged(new), federation.averaged(old)
  )


def without(data, client):
  """The data of a neighbouring federation: a client holds and has nothing."""
  partition = data.partition
  gone = jnp.arange(CLIENTS)[:, None] == client
  return dataclasses.replace(
    data,
    partition=dataclasses.replace(
      partition,
      client_tasks=jnp.where(gone, TASKS, partition.client_tasks),
      label_counts=jnp.where(gone, 0, partition.label_counts),
    ),
  )


def expected_sums(federation, data, tree):
  """Averages, times what they were divided by when all take part."""
  sizes = np.array(federation.group_sizes, np.float32)
  common = min(float(sizes.sum()), CLIENTS)

  def one(label, leaf):
    if label != 'task':
      return leaf * common
    return leaf * sizes.reshape((-1,) + (1,) * (leaf.ndim - 1))

  return jax.tree.map(one, federation.averaged(federation.layer_types), tree)


class SensitivityTest(parameterized.TestCase):
  @parameterized.parameters(
    ('multi_task_fl', 1, 'low_rank', 200),
    ('multi_task_fl', 1, {'common': 'eden', 'task': 'power_sgd'}, 200),
    ('multi_task_fl', 2, {'common': 'qsgd', 'task': 'top_k'}, 200),
    ('fedprox', 2, {'common': 'sign'}, 200),
    ('fedrep', 1, {}, 200),
    ('mr_mtl', 2, {}, 50),
    ('ditto', 1, {}, 50),
  )
  def test_without_a_client_the_sums_of_all_owners_move_by_one_norm(
    self, name, slots, codecs, number
  ):
    """Over a thousand federations, in some of them as far as may be."""
    data = testing.toy_data(CLIENTS, TASKS, slots)
    bound, execution = 0.3, 'vmap'
    if codecs == 'low_rank':
      codecs, execution = {}, 'low_rank'
    settings = {
      'compression': {n: compression.get(c) for n, c in codecs.items()},
      'privacy': private(clipping_norm=bound),
    }
    if name == 'multi_task_fl':
      algorithm, federation = plain_round(data, execution=execution, **settings)
      if execution == 'low_rank':
        self.assertEqual(algorithm.form(data)[0], 'low_rank')
    else:
      federation, data, algorithm = cases.named(name, data, **settings)
    start = cases.start(algorithm, data)

    def moved(seed):
      keys = jax.random.split(jax.random.key(seed), 4)
      shape = data.examples.features.shape
      spread = jnp.exp(3 * jax.random.normal(keys[0]))
      features = spread * jax.random.normal(keys[1], shape)
      examples = dataclasses.replace(data.examples, features=features)
      other = dataclasses.replace(data, examples=examples)
      client = jax.random.randint(keys[2], (), 0, CLIENTS)
      state = dataclasses.replace(start, key=keys[3])

      def sums(gone):
        x = without(other, gone)
        new = algorithm.round(state, x)[0]
        return expected_sums(
          federation, x, sent(federation, new.params, state.params)
        )

      # Both are the same code; without client number CLIENTS all are there.
      pair = jax.lax.map(sums, jnp.stack([jnp.int32(CLIENTS), client]))
      return jnp.sqrt(
        sum(jnp.square(x[0] - x[1]).sum() for x in jax.tree.leaves(pair))
      )

    run = lambda seeds: jax.lax.map(moved, seeds)
    found = np.asarray(testing.jit(run)(jnp.arange(number)))
    self.assertLess(found.max(), bound * (1 + 1e-4))
    self.assertGreater(found.max(), 0.95 * bound)
    self.assertGreater(np.ptp(found), 0)

  def test_a_norm_for_each_layer_type_bounds_each(self):
    norms = {'common': 0.01, 'task': 0.02}
    data = cases.toy_data(CLIENTS, TASKS)
    algorithm, federation = plain_round(
      data, privacy=private(clipping_norm=norms)
    )
    start = cases.start(algorithm, data)
    run = testing.jit(lambda data: algorithm.round(start, data)[0].params)
    pair = [
      expected_sums(federation, x, sent(federation, run(x), start.params))
      for x in (data, without(data, 4))
    ]
    moved = jax.tree.map(jnp.subtract, *pair)
    for name, bound in norms.items():
      leaves = jax.tree.leaves(federation.of_type(name, moved))
      norm = math.sqrt(sum(np.square(x).sum() for x in leaves))
      self.assertBetween(norm, 0.99 * bound, 1.0001 * bound)

  def test_what_is_not_finite_becomes_zero(self):
    data = cases.toy_data(CLIENTS, TASKS)
    features = np.array(data.examples.features)
    features[data.partition.train.groups()[4]] = np.nan
    examples = dataclasses.replace(data.examples, features=features)
    other = dataclasses.replace(data, examples=examples)
    algorithm, federation = plain_round(data, privacy=private())
    start = cases.start(algorithm, data)
    run = testing.jit(lambda data: algorithm.round(start, data)[0].params)
    found, expected = (
      federation.averaged(run(x)) for x in (other, without(data, 4))
    )
    testing.assert_trees_equal(found, expected)


class WithoutNoiseTest(parameterized.TestCase):
  @parameterized.parameters(1, 2)
  def test_of_fixed_cohorts_a_round_is_that_of_uniform_weights(self, slots):
    """In every bit, without a norm; for two slots up to the divisor."""
    data = cases.toy_data(CLIENTS, TASKS, slots)
    found = []
    for settings in (
      {'weighting': UNIFORM},
      {'privacy': private(clipping_norm=math.inf)},
    ):
      algorithm, _ = plain_round(data, clients_per_task=0, **settings)
      start = cases.start(algorithm, data)
      found.append(cases.run(algorithm, data, 2, start).state.params)
    testing.assert_trees_equal(*found)

  def test_of_poisson_cohorts_its_sums_are_divided_by_what_is_expected(self):
    data = cases.toy_data(CLIENTS, TASKS)
    federation = testing.toy_federation(MIX, data)[0]
    one = privacy.ClientPrivacy(clipping_norm=math.inf)
    algorithm, _ = plain_round(data, clients_per_task=1, privacy=one)
    start = dataclasses.replace(
      cases.start(algorithm, data), key=jax.random.key(3)
    )
    new, metrics = testing.jit(algorithm.round)(start, data)
    absent = set(range(CLIENTS)) - set(np.asarray(metrics['client']).tolist())
    self.assertBetween(len(absent), 1, CLIENTS - 1)
    everyone, _ = plain_round(data, privacy=private(clipping_norm=math.inf))
    others = functools.reduce(without, absent, data)
    all_new, _ = testing.jit(everyone.round)(start, others)
    # Divided by one client of each task, and by all three of them.
    found, expected = (
      sent(federation, x.params, start.params) for x in (new, all_new)
    )
    expected = jax.tree.map(lambda x: 3 * x, expected)
    testing.assert_trees_close(found, expected, rtol=1e-4, atol=1e-5)

  def test_of_clients_with_all_their_tasks_more_are_expected_than_drawn(self):
    """No fewer than there are in the mean, whoever is drawn for what."""
    data = cases.toy_data(CLIENTS, TASKS, 2)
    federation = testing.toy_federation(MIX, data)[0]
    settings = round_settings.RoundSettings(
      privacy=privacy.ClientPrivacy(), clients_per_task=1, slots=cohorts.ALL
    )
    rounds = private_rounds.PrivateRounds(federation, settings)
    none = jnp.zeros(TASKS)
    aggregate = servers.Aggregate({}, (), none, None, none)
    found = rounds.released({'task': aggregate}, clipping.State(()))['task']
    rates = 1 / np.array(federation.group_sizes)
    expected = np.zeros(TASKS)
    for tasks in np.asarray(data.partition.client_tasks):
      held = tasks[tasks < TASKS]
      expected[held] += 1 - np.prod(1 - rates[held])
    np.testing.assert_array_less(1.2, expected)
    np.testing.assert_array_less(expected, found.weight + 1e-5)
    np.testing.assert_array_equal(found.share, np.ones(TASKS))


class NoiseTest(absltest.TestCase):
  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.data = cases.toy_data(CLIENTS, TASKS)
    cls.bound, cls.z = 1e-3, 1.5

  def _sums(self, **settings):
    """Sums less those without noise, over many rounds from one state."""
    found = []
    for noise in (0.0, self.z):
      one = private(
        clipping_norm=self.bound, noise_multiplier=noise, **settings
      )
      algorithm, federation = plain_round(self.data, privacy=one)
      start = cases.start(algorithm, self.data)
      data = without(self.data, 0)  # Of task 0, which others hold, too:
      for client in (3, 6):  # now nobody does.
        data = without(data, client)

      def run(number, start=start, algorithm=algorithm, data=data):
        state = dataclasses.replace(start, round=jnp.int32(number))
        return algorithm.round(state, data)[0].params

      numbers = jnp.arange(300)
      found.append(testing.jit(lambda n, run=run: jax.lax.map(run, n))(numbers))
    moved = sent(federation, *found[::-1])
    sizes = np.array(federation.group_sizes, np.float32)

    def one(label, x):
      if label == 'task':
        return x * sizes.reshape((-1,) + (1,) * (x.ndim - 2))
      return x * CLIENTS

    sums = jax.tree.map(one, federation.averaged(federation.layer_types), moved)
    own = [federation.of_type('personal', x) for x in found]
    return federation, sums, own

  def test_every_coordinate_of_every_owner_has_it(self):
    federation, sums, own = self._sums()
    testing.assert_trees_equal(*own)  # Personal rows have none.
    deviation = self.z * self.bound
    for leaf in jax.tree.leaves(sums):
      np.testing.assert_allclose(np.std(leaf, 0), deviation, rtol=0.25)
    task = np.concatenate(
      [
        np.asarray(x).reshape(300, TASKS, -1)
        for x in jax.tree.leaves(federation.of_type('task', sums))
      ],
      axis=2,
    )
    for owner in range(TASKS):  # The first one has no client.
      np.testing.assert_allclose(np.std(task[:, owner]), deviation, rtol=0.03)
    flat = np.concatenate(
      [np.asarray(x).reshape(300, -1) for x in jax.tree.leaves(sums)], axis=1
    )
    related = np.abs(np.corrcoef(flat.T) - np.eye(flat.shape[1]))
    self.assertLess(related.max(), 0.3)  # No two have the same noise.

  def test_local_noise_adds_up(self):
    federation, sums, _ = self._sums(noise='local')
    for leaf in jax.tree.leaves(federation.of_type('common', sums)):
      deviation = self.z * self.bound * math.sqrt(CLIENTS - 3)
      np.testing.assert_allclose(np.std(leaf), deviation, rtol=0.05)
    for leaf in jax.tree.leaves(federation.of_type('task', sums)):
      deviation = self.z * self.bound * math.sqrt(3)
      np.testing.assert_allclose(np.std(leaf[:, 1:]), deviation, rtol=0.05)

  def test_its_key_is_of_the_system_or_of_a_seed(self):
    keys = {}
    for seed in (None, 0, 1):
      algorithm, _ = plain_round(self.data, privacy=private(seed=seed))
      keys[seed] = [
        np.asarray(
          jax.random.key_data(
            algorithm.init(jax.random.key(0), self.data).privacy.key
          )
        ).tolist()
        for _ in range(2)
      ]
    self.assertNotEqual(*keys[None])
    self.assertEqual(*keys[0])
    self.assertNotEqual(keys[0], keys[1])

  def test_a_compiled_start_has_another_key_of_the_system_each_time(self):
    algorithm, _ = plain_round(self.data, privacy=private(seed=None))
    of_noise = lambda key: jax.random.key_data(
      algorithm.init(key, self.data).privacy.key
    )
    keys = jax.random.split(jax.random.key(0))
    for start in (
      functools.partial(of_noise, keys[0]),  # Nothing is compiled.
      functools.partial(testing.jit(of_noise), keys[0]),
      functools.partial(testing.jit(jax.vmap(of_noise)), keys),
    ):
      found = [np.asarray(start()).reshape(-1, 2) for _ in range(2)]
      found = [tuple(key) for keys in found for key in keys]
      self.assertLen(set(found), len(found))

    def given(key, words):
      with noise_keys.given(words):
        return of_noise(key)

    words = noise_keys.draw(2)
    self.assertEqual(words.shape, (2, 4))
    run = testing.jit(given)
    first, again, other = (run(keys[0], words[i]) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    self.assertFalse(np.array_equal(first, other))
    self.assertNotIn('callback', run.lower(keys[0], words[0]).as_text())


class AdaptiveTest(parameterized.TestCase):
  def test_the_norm_reaches_the_quantile_from_both_sides(self):
    data = testing.toy_data(CLIENTS, TASKS)
    norms = []
    for first in (0.1, 100.0):
      one = private(
        clipping_norm=first,
        adaptive=privacy.AdaptiveClipping(quantile=0.5),
      )
      algorithm, federation = plain_round(data, privacy=one)
      start = cases.start(algorithm, data)

      def step(state, _, algorithm=algorithm, start=start):
        new, metrics = algorithm.round(state, data)
        kept = dataclasses.replace(start, privacy=new.privacy)
        return kept, (new.privacy.clipping_norm, metrics[clipping.BELOW])

      run = lambda state, step=step: jax.lax.scan(step, state, length=150)
      _, (norm, below) = testing.jit(run)(start)
      norms.append(np.asarray(norm))
      self.assertBetween(np.mean(below[-40:]), 0.4, 0.6)
    np.testing.assert_allclose(norms[0][-1], norms[1][-1], rtol=0.1)
    self.assertGreater(norms[0][20], 0.1)
    self.assertLess(norms[1][20], 100)

  def test_a_clipped_message_is_multiplied_back(self):
    data = cases.toy_data(CLIENTS, TASKS)
    found = []
    for adaptive in (None, privacy.AdaptiveClipping()):
      one = private(clipping_norm=0.05, adaptive=adaptive)
      algorithm, _ = plain_round(data, privacy=one)
      start = cases.start(algorithm, data)
      found.append(cases.run(algorithm, data, 1, start).state.params)
    testing.assert_trees_close(*found, rtol=1e-5, atol=1e-6)

  def test_the_count_has_its_part_of_the_noise(self):
    data = cases.toy_data(CLIENTS, TASKS)
    adaptive = privacy.AdaptiveClipping(count_noise=1.0)
    one = private(noise_multiplier=1.5, adaptive=adaptive)
    algorithm, _ = plain_round(data, privacy=one)
    start = cases.start(algorithm, data)
    step = lambda n: (
      algorithm.round(dataclasses.replace(start, round=n), data)[
        0
      ].privacy.clipping_norm
    )
    norms = testing.jit(lambda n: jax.lax.map(step, n))(jnp.arange(400))
    # log C moves by -0.2 (share - 0.5), the noise of which is 1 / 9.
    np.testing.assert_allclose(np.std(np.log(norms)), 0.2 / 9, rtol=0.15)
    with self.assertRaisesRegex(ValueError, '`count_noise` > 0.75'):
      plain_round(
        data,
        privacy=private(
          noise_multiplier=1.5,
          adaptive=privacy.AdaptiveClipping(count_noise=0.5),
        ),
      )


class PoissonTest(parameterized.TestCase):
  def test_sizes_are_binomial_up_to_the_cap(self):
    counts, sizes, caps = (5, 2, 3), (20, 30, 3), (8, 30, 3)
    keys = jax.random.split(jax.random.key(0), 4000)
    draw = lambda key: poisson.counts(key, counts, sizes, caps)
    found = np.asarray(testing.jit(jax.vmap(draw))(keys))
    for task in range(3):
      law = stats.binom(sizes[task], counts[task] / sizes[task])
      p = law.pmf(np.arange(caps[task] + 1))
      p[-1] += law.sf(caps[task])
      got = np.bincount(found[:, task], minlength=caps[task] + 1) / 4000
      np.testing.assert_allclose(got, p, atol=0.03)
      self.assertLessEqual(found[:, task].max(), caps[task])

  @parameterized.parameters(1, 2)
  def test_every_client_takes_part_with_the_rate_of_its_groups(self, slots):
    data = cases.toy_data(12, TASKS, slots)
    federation = testing.toy_federation(MIX, data)[0]
    sizes, counts = federation.group_sizes, (1, 2, 1)

    def draw(key):
      cohort = cohorts.sample(key, data, counts, sizes, 'drawn', sizes)
      table = jnp.zeros((12, TASKS))
      return table.at[cohort.client[:, None], cohort.tasks].add(
        cohort.active, mode='drop'
      )

    keys = jax.random.split(jax.random.key(1), 3000)
    found = np.asarray(testing.jit(lambda k: jax.lax.map(draw, k))(keys))
    self.assertEqual(found.max(), 1)
    rates = np.array(counts) / np.array(sizes)
    holds = np.zeros((12, TASKS), bool)
    for client, tasks in enumerate(np.asarray(data.partition.client_tasks)):
      holds[client, tasks[tasks < TASKS]] = True
    np.testing.assert_allclose(found.mean(0), holds * rates, atol=0.04)
    union = 1 - np.prod(1 - holds * rates, axis=1)
    np.testing.assert_allclose(found.any(2).mean(0), union, atol=0.04)

  def test_those_who_do_not_take_part_are_padding(self):
    data = cases.toy_data(CLIENTS, TASKS)
    algorithm, _ = plain_round(
      data, clients_per_task=1, privacy=privacy.ClientPrivacy(cap=2)
    )
    start = cases.start(algorithm, data)
    run = testing.jit(
      lambda n: algorithm.round(dataclasses.replace(start, round=n), data)[1][
        'client'
      ]
    )
    clients = np.asarray([run(n) for n in range(60)])
    self.assertEqual(clients.shape[1], 2 * TASKS)
    there = (clients < CLIENTS).sum(1)
    self.assertEqual(there.min() < 2, True)
    self.assertGreater(there.max(), 3)


class LedgersTest(absltest.TestCase):
  def test_a_group_is_charged_for_what_its_clients_hold(self):
    groups = ledgers.Groups(
      names=('a', 'b', 'c'), sizes=(100, 50, 10), clients_per_task=(10, 10, 5)
    )
    one = privacy.ClientPrivacy(noise_multiplier=2.0)
    found = ledgers.epsilons(one, groups, 20, accountant='pld')
    self.assertLess(found['a'], found['b'])
    self.assertLess(found['b'], found['c'])
    self.assertEqual(ledgers.caps(one, groups), (23, 23, 10))
    both = dataclasses.replace(groups, num_slots=2)
    self.assertAlmostEqual(both.rate(0), 1 - 0.9 * 0.5)
    self.assertAlmostEqual(both.rate(2), 1 - 0.5 * 0.8)
    fixed = dataclasses.replace(one, sampling='fixed')
    self.assertGreater(
      ledgers.epsilons(fixed, groups, 20, accountant='rdp')['a'],
      2 * found['a'],
    )

  def test_calibrated_noise_keeps_every_group_below(self):
    groups = ledgers.Groups(
      names=('a', 'b'), sizes=(100, 20), clients_per_task=(10, 10)
    )
    one = privacy.ClientPrivacy(
      sampling='fixed', clipping_norm={'common': 1.0, 'task': 2.0}
    )
    z = ledgers.calibrated(8.0, one, groups, 10, 2, 'rdp')
    noisy = dataclasses.replace(one, noise_multiplier=z)
    found = ledgers.epsilons(noisy, groups, 10, 2, 'rdp')
    self.assertBetween(max(found.values()), 7.9, 8.0)


class RefusalsTest(parameterized.TestCase):
  @parameterized.parameters(*algorithms.ALGORITHMS)
  def test_what_is_not_bounded_is_refused(self, name):
    data = cases.toy_data(CLIENTS, TASKS)
    build = lambda: cases.named(name, data, privacy=private())
    if name not in REFUSED:
      build()
      return
    with self.assertRaisesRegex(ValueError, REFUSED[name]):
      build()

  @parameterized.parameters(
    ({'reducer': {'common': robust_aggregators.median}}, r"`reducer\['common"),
    ({'weighting': {'task': 'examples'}}, r"`weighting\['task'\]`='uniform'"),
    ({'balancing': balancing.Places(group=balancing.pcgrad())}, 'balancing'),
    (
      {'placement': round_settings.Placement(task_axis='task')},
      '`task_axis`',
    ),
    ({'privacy': privacy.ClientPrivacy(cap=1)}, '`cap` >= 3'),
    ({'privacy': privacy.ClientPrivacy(cap=(1, 2))}, 'one for each task'),
    ({'privacy': private(clipping_norm={'common': 1.0})}, 'common, task, got'),
    (
      {'privacy': private(noise='local', adaptive=privacy.AdaptiveClipping())},
      "`noise`='central'",
    ),
  )
  def test_settings_that_are_not_bounded(self, settings, sentence):
    data = cases.toy_data(CLIENTS, TASKS)
    federation, _ = testing.toy_federation(MIX, data)
    with self.assertRaisesRegex(ValueError, sentence):
      multi_task_fl.multi_task_fl(
        federation,
        cases.Local().package(),
        round_settings.RoundSettings(**{'privacy': private()} | settings),
      )

  def test_groups_of_one_and_averaged_running_statistics(self):
    one = cases.toy_data(3, TASKS)
    with self.assertRaisesRegex(ValueError, 'one client'):
      plain_round(one, privacy=private())
    data = cases.toy_data(CLIENTS, TASKS)
    for name, fails in (('fedavg', True), ('fedbn', False)):
      build = functools.partial(
        cases.named, name, data, normalization='batch', privacy=private()
      )
      if fails:
        with self.assertRaisesRegex(ValueError, 'running statistics'):
          build()
      else:
        build()


if __name__ == '__main__':
  absltest.main()

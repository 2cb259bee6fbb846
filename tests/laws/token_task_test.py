"""Laws of tasks that bring their own loss, metrics, width and targets."""

import dataclasses
import functools
import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import metrics as sklearn_metrics

from fmtl_jax import execution as execution_lib
from fmtl_jax import evaluation
from fmtl_jax import federation as federation_lib
from fmtl_jax import metrics as metrics_lib
from fmtl_jax import predictors
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import attacks
from fmtl_jax.clients import local_optimizers
from fmtl_jax.data import client_data
from fmtl_jax.data import client_sources
from fmtl_jax.data import dataset as dataset_lib
from fmtl_jax.rounds import round_settings
from fmtl_jax.rounds import streaming
from fmtl_jax.tasks import kinds as kinds_lib

import cases

VOCABULARY, LENGTH, WIDTH = 5, 4, 4
LOCAL = local_optimizers.LocalSgd(learning_rate=1.0, batch_size=3)


def _token_loss(outputs, targets, unused_features):
  """The mean cross-entropy of the tokens that count, of each example."""
  losses = optax.softmax_cross_entropy_with_integer_labels(
    outputs, targets['tokens']
  )
  mask = targets['mask']
  count = jnp.maximum(mask.sum(-1), 1).astype(losses.dtype)
  return jnp.where(mask, losses, 0).sum(-1) / count


def _right_tokens(answers):
  mask = answers.targets['mask']
  right = (answers.predictions == answers.targets['tokens']) & mask
  return right.sum(-1), mask.sum(-1)


def _are_tokens(targets, num_classes):
  below = targets['tokens'] < num_classes[:, None]
  return (below & (targets['tokens'] >= 0)).all(1)


TOKEN_ACCURACY = metrics_lib.Metric(
  name='token_accuracy', values=_right_tokens, in_percent=True
)
TOKENS = tasks_lib.Kind(
  name='symbols',
  loss=_token_loss,
  metrics=(TOKEN_ACCURACY,),
  num_outputs=None,
  predict=lambda outputs: outputs.argmax(-1).astype(jnp.int32),
  is_valid=_are_tokens,
  rule='tokens from 0 to {last}',
)


def _model():
  """Token by token: embedding, tanh, output layer; outputs `[B, L, V]`."""

  def init(key):
    first, second = jax.random.split(key)
    return {
      'embed': {'kernel': jax.random.normal(first, (VOCABULARY, WIDTH))},
      'output': {'kernel': jax.random.normal(second, (WIDTH, VOCABULARY)) / 2},
    }

  def apply(params, tokens):
    hidden = jax.nn.one_hot(tokens, VOCABULARY) @ params['embed']['kernel']
    return jnp.tanh(hidden) @ params['output']['kernel']

  return init, apply


@functools.cache
def _examples():
  """The token after x is x + 1 for one task and x - 1 for the other one.

  Clients 0 to 2 have the one, 3 to 5 the other; sequences end early, and client
  1 lacks the targets of two examples.
  """
  rng = np.random.default_rng(0)
  count = 60
  first = rng.integers(VOCABULARY, size=(count, LENGTH))
  tokens = np.stack([first + 1, first - 1], 1) % VOCABULARY
  lengths = rng.integers(1, LENGTH + 1, size=count)
  mask = np.arange(LENGTH) < lengths[:, None]
  present = np.ones((count, 2), bool)
  present[10:12] = False
  return {
    'features': first.astype(np.int32),
    'labels': {
      'tokens': tokens.astype(np.int32),
      'mask': np.stack([mask] * 2, 1),
    },
    'present': present,
  }


def _data(**changes):
  rows = np.split(np.arange(60), [9, 21, 30, 42, 49])
  tasks = [
    tasks_lib.Task(name=name, kind=TOKENS, num_classes=VOCABULARY, column=i)
    for i, name in enumerate(('forward', 'backward'))
  ]
  arguments = {
    **_examples(),
    'tasks': tasks,
    'client_tasks': [0, 0, 0, 1, 1, 1],
    'train': [r[:-4] for r in rows],
    'test': [r[-4:] for r in rows],
  }
  return dataset_lib.FederatedDataset.create(**arguments | changes)


def _federation(data, head):
  rules = [('embed/.*', 'common'), ('output/.*', head)]
  return federation_lib.Federation.create(_model(), rules, data)


def _trained(data, head='task', rounds=25, execution='scan'):
  """The state after some rounds, each round's loss, and the algorithm."""
  federation = _federation(data, head)
  settings = round_settings.RoundSettings(
    placement=round_settings.Placement(execution=execution)
  )
  algorithm = multi_task_fl.multi_task_fl(federation, LOCAL, settings)
  _, state, metrics, _ = cases.run(algorithm, data, rounds, seed=1)
  sums = (np.asarray(metrics[name]) for name in ('loss_sum', 'count'))
  losses = np.divide(
    *(of_rounds.reshape(rounds, -1).sum(1) for of_rounds in sums)
  )
  return state, losses, federation, algorithm


@functools.cache
def _evaluated(head, rounds):
  """Of the data set: the metrics of every view, and how it was trained."""
  data = _data()
  state, losses, federation, algorithm = _trained(data, head, rounds)
  evaluate = testing.jit(evaluation.evaluator(federation, algorithm))
  rows = data.partition.test, data.partition.pooled_test
  found = jax.device_get(evaluate(state, data, *rows))
  return data, state, losses, (federation, algorithm), found


class TokenTaskTest(parameterized.TestCase):
  @parameterized.parameters(('common', 0.8), ('task', 0.2))
  def test_its_loss_falls(self, head, below):
    _, _, losses, _, _ = _evaluated(head, 25)
    self.assertTrue(np.isfinite(losses).all())
    self.assertLess(losses[-1], below * losses[0])

  def test_one_head_cannot_serve_tasks_that_contradict_each_other(self):
    alike, own = (
      _evaluated(head, 25)[-1]['pooled']['token_accuracy']
      for head in ('common', 'task')
    )
    np.testing.assert_array_equal(own, 1)
    self.assertLess(alike[-1], 0.8)

  def test_scan_and_vmap_agree(self):
    states = [
      _trained(_data(), rounds=2, execution=form)[0].params
      for form in ('scan', 'vmap')
    ]
    testing.assert_trees_close(*states)

  def test_metrics_are_those_of_a_loop_over_tokens(self):
    data, state, _, (federation, algorithm), found = _evaluated('common', 25)
    labels, features = _examples()['labels'], _examples()['features']

    def counts(client, task):
      """Right tokens, tokens and losses of a client's test examples."""
      predictor = predictors.client_predictor(
        federation, algorithm, state, data, client
      )
      rows = data.partition.test.groups()[client]
      outputs = np.asarray(predictor.outputs(features[rows]), np.float64)
      likelihood = np.exp(outputs)
      likelihood /= likelihood.sum(-1, keepdims=True)
      right, total, losses = 0, 0, []
      for place, row in enumerate(rows):
        of_example = []
        for step in range(LENGTH):
          token = labels['tokens'][row, task, step]
          if labels['mask'][row, task, step]:
            right += int(outputs[place, step].argmax() == token)
            total += 1
            of_example.append(-np.log(likelihood[place, step, token]))
        losses.append(np.mean(of_example))
      return right, total, np.mean(losses)

    each = [
      np.array(
        [counts(client, task) for client in range(3 * task, 3 * task + 3)]
      )
      for task in (0, 1)
    ]
    of_all = np.concatenate(each)
    groups = [*each, of_all]
    ratio = lambda x: x[:, 0].sum() / x[:, 1].sum()
    own = lambda x: x[:, 0] / x[:, 1]
    expected = {
      '': [ratio(x) for x in groups],
      '_client_mean': [own(x).mean() for x in groups],
      '_client_std': [own(x).std() for x in groups],
      '_worst_decile': [own(x).min() for x in groups],
    }
    for suffix, values in expected.items():
      np.testing.assert_allclose(
        found['client']['token_accuracy' + suffix], values, rtol=1e-5
      )
    pooled = [ratio(x) for x in each]
    np.testing.assert_allclose(
      found['pooled']['token_accuracy'], [*pooled, np.mean(pooled)], rtol=1e-5
    )
    np.testing.assert_allclose(
      found['each']['token_accuracy'][:, 0], own(of_all), rtol=1e-5
    )
    np.testing.assert_allclose(
      found['each']['loss'][:, 0], of_all[:, 2], rtol=1e-4
    )
    # Sequences differ in length: examples are no weights of tokens.
    self.assertGreater(abs(own(of_all).mean() - ratio(of_all)), 1e-4)


class TargetsTest(parameterized.TestCase):
  """A tree of targets is stored, batched and streamed as it is."""

  def test_a_batch_has_the_types_of_its_targets_and_zeros_for_padding(self):
    data = _data()
    rows = jnp.array([3, 10, 7])
    batch = testing.jit(data.take)(
      rows, jnp.array([1, 0, 2]), jnp.array([True, True, False])
    )
    labels = _examples()['labels']
    self.assertEqual(batch.labels['tokens'].shape, (3, 3, LENGTH))
    self.assertEqual(batch.labels['tokens'].dtype, jnp.int32)
    self.assertEqual(batch.labels['mask'].dtype, bool)
    np.testing.assert_array_equal(
      batch.has_label, [[True, False, False], [True, False, False], [False] * 3]
    )
    for name, leaf in batch.labels.items():
      np.testing.assert_array_equal(leaf[0, 0], labels[name][3, 1])
      np.testing.assert_array_equal(leaf[1, 0], labels[name][3, 0])
      self.assertFalse(np.asarray(leaf)[:, 1:].any(), name)
      self.assertFalse(np.asarray(leaf)[2].any(), name)

  def test_targets_that_are_missing_may_be_anything(self):
    garbage = jax.tree.map(np.copy, _examples()['labels'])
    garbage['tokens'][10:12] = 4_000
    federation = _federation(_data(), 'task')
    algorithm = multi_task_fl.multi_task_fl(federation, LOCAL)
    round_fn = testing.jit(algorithm.round)
    found = [
      round_fn(cases.start(algorithm, _data()), _data(labels=labels))
      for labels in (_examples()['labels'], garbage)
    ]
    testing.assert_trees_equal(*found)

  def test_wide_whole_numbers_are_refused_and_others_kept(self):
    labels = dict(_examples()['labels'])
    labels['tokens'] = labels['tokens'].astype(np.int64)
    self.assertEqual(_data(labels=labels).examples.labels['tokens'].dtype, 'i4')
    labels['tokens'][0, 0, 0] = 2**40
    with self.assertRaisesRegex(
      ValueError, 'whole labels .* got 1099511627776'
    ):
      _data(labels=labels)

  def test_clients_on_the_host_change_no_number(self):
    data = _data()
    source = client_sources.DatasetClients(data)
    make = lambda federation, settings: multi_task_fl.multi_task_fl(
      federation, LOCAL, settings
    )
    settings = round_settings.RoundSettings(
      placement=round_settings.Placement(execution='scan')
    )
    streamed = streaming.StreamedRounds(
      _federation(source.tables, 'task'),
      source,
      make,
      settings,
      None,
      None,
      compiler_options=execution_lib.quick_options(),
    )
    algorithm = make(_federation(data, 'task'), settings)
    key = jax.random.key(3)
    expected = cases.run(algorithm, data, seed=3).state
    with streamed:
      state, _ = streamed.run_round(streamed.init(key))
      testing.assert_trees_close(
        streamed.state_of(state, np.arange(data.num_clients)), expected
      )

  def test_what_a_source_reads_is_what_its_tables_say(self):
    source = client_sources.DatasetClients(_data())
    features, labels, present = source.read(0)
    for wrong, sentence in (
      (labels['tokens'], 'labels of client 0 as a PyTreeDef'),
      (
        labels | {'tokens': labels['tokens'][:, :, :2]},
        r'\(5, 2, 4\), a column',
      ),
      (labels | {'tokens': labels['tokens'] + 0.5}, 'type int32'),
      (
        labels | {'tokens': labels['tokens'] + 9},
        "'forward' to be tokens from",
      ),
    ):
      source.read = lambda client, wrong=wrong: (features, wrong, present)
      with self.assertRaisesRegex(ValueError, sentence):
        client_data.read_clients(source, np.array([0]))
    source.read = lambda client: (features, labels, ~present)
    with self.assertRaisesRegex(ValueError, '5 labels .* got 0; correct'):
      client_data.read_clients(source, np.array([0]))

  def test_a_sequence_of_items_can_have_them(self):
    examples = _examples()
    rows = [np.arange(0, 5), np.arange(20, 30)]
    items = [
      (
        examples['features'][row],
        jax.tree.map(lambda leaf, row=row: leaf[row], examples['labels']),
      )
      for row in range(60)
    ]
    source = client_sources.SequenceClients(
      items,
      [of_client.tolist() for of_client in rows],
      lambda item: item,
      tasks=_data().tasks,
      client_tasks=[0, 1],
    )
    found = client_data.read_clients(source, np.array([1, 0]))
    batch = testing.jit(found.take)(
      jnp.arange(10), jnp.array([1]), jnp.ones(10, bool)
    )
    for name, leaf in batch.labels.items():
      np.testing.assert_array_equal(leaf[0], examples['labels'][name][20:30, 1])

  def test_several_labels_at_once(self):
    """A multi-label task: targets `[N, 1, k]`, the sum of k cross-entropies."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(40, 3)).astype(np.float32)
    labels = (features @ rng.normal(size=(3, 4)) > 0).astype(np.float32)
    several = tasks_lib.Kind(
      name='several',
      loss=lambda outputs, targets, unused: optax.sigmoid_binary_cross_entropy(
        outputs, targets
      ).sum(-1),
      metrics=(
        metrics_lib.Metric(
          name='all_right',
          values=lambda a: ((a.outputs > 0) == (a.targets > 0.5)).all(-1),
        ),
      ),
      num_outputs=4,
    )
    labels[5] = np.nan
    data = dataset_lib.FederatedDataset.create(
      features=features,
      labels=labels[:, None],
      tasks=[tasks_lib.Task(name='parts', kind=several)],
      client_tasks=[0, 0],
      train=[np.arange(15), np.arange(15, 30)],
      test=[np.arange(30, 35), np.arange(35, 40)],
    )
    np.testing.assert_array_equal(np.flatnonzero(~data.examples.present), [5])
    federation, _ = testing.toy_federation(('common',), data)
    algorithm = multi_task_fl.multi_task_fl(federation, LOCAL)
    state = cases.start(algorithm, data)
    rows = data.partition.test, data.partition.pooled_test
    found = testing.jit(evaluation.evaluator(federation, algorithm))(
      state, data, *rows
    )
    params = jax.device_get(state.params)['layer_0']
    outputs = features[30:] @ params['kernel'] + params['bias']
    right = ((outputs > 0) == (labels[30:] > 0.5)).all(1)
    loss = np.logaddexp(0, -np.where(labels[30:] > 0.5, 1, -1) * outputs).sum(1)
    np.testing.assert_allclose(
      found['pooled']['all_right'], [right.mean()] * 2, rtol=1e-6
    )
    np.testing.assert_allclose(
      found['pooled']['loss'], [loss.mean()] * 2, rtol=1e-5
    )


class OwnLossTest(absltest.TestCase):
  def test_it_sees_the_features(self):
    """One step of weighted least squares is at the weighted mean."""
    weights = np.array([[0.5], [2.0], [0.5]], np.float32)  # Of mean one.
    labels = np.array([3.0, -1.0, 8.0], np.float32)

    def loss(outputs, targets, features):
      return features[:, 0] * jnp.square(outputs[:, 0] - targets)

    task = tasks_lib.regression('weighted', loss=loss)
    plain = tasks_lib.regression('plain')
    data = dataset_lib.FederatedDataset.from_clients(
      [weights, weights], [labels, labels], [0, 1], [task, plain]
    )
    federation = federation_lib.Federation.create(
      testing.constant(), [('output/bias', 'task')], data
    )
    self.assertEqual(federation.lower_bounds, (None, 0.0))
    algorithm = multi_task_fl.multi_task_fl(federation, testing.TO_THE_MEAN)
    _, state, metrics, _ = cases.run(algorithm, data)
    np.testing.assert_allclose(
      state.params['output']['bias'][:, 0],
      [np.average(labels, weights=weights[:, 0]), labels.mean()],
      rtol=1e-6,
    )
    np.testing.assert_allclose(
      metrics['loss_sum'][0, :, 0],
      [(weights[:, 0] * labels**2).sum(), (labels**2).sum()],
    )


_example_metrics = testing.jit(evaluation.example_metrics, static_argnums=0)


def _top_2(answers):
  best = jax.lax.top_k(answers.outputs, 2)[1].astype(answers.targets.dtype)
  return (best == answers.targets[:, None]).any(-1)


def _f1(answers):
  predicted, positive = answers.predictions == 1, answers.targets == 1
  both = predicted & positive
  return 2 * both, 2 * both + (predicted ^ positive)


TOP_2 = metrics_lib.Metric(name='top_2', values=_top_2, in_percent=True)
F1 = metrics_lib.Metric(name='f1', values=_f1, label='F1')
ERROR = metrics_lib.Metric(
  name='absolute_error',
  values=lambda a: a.unit * jnp.abs(a.predictions - a.targets),
  lower_is_better=True,
)
MEDIAN = metrics_lib.Metric(
  name='median_error',
  of_set=lambda a: (
    jnp.nanmedian(
      jnp.where(a.valid, jnp.abs(a.outputs[:, 0] - a.targets), jnp.nan)
    ),
    a.valid.any(),
  ),
  lower_is_better=True,
)


class OwnMetricTest(parameterized.TestCase):
  TASKS = (
    tasks_lib.multiclass('three', 3, metrics=[TOP_2]),
    tasks_lib.regression('value', column=1, unit=2.0, metrics=(ERROR, MEDIAN)),
    tasks_lib.binary('two', metrics=(F1,)),
  )

  def _metrics(self, task):
    rng = np.random.default_rng(task)
    outputs = rng.normal(size=(40, 3)).astype(np.float32)
    labels = rng.integers(3 - task, size=40).astype(np.float32)
    valid = rng.random(40) < 0.7
    found = _example_metrics(
      self.TASKS, np.ones(40, np.float32), outputs, labels, valid, task
    )
    self.assertEqual(
      evaluation.metric_names(self.TASKS),
      (
        *('accuracy', 'balanced_accuracy', 'auc', 'mse', 'top_2'),
        *('absolute_error', 'median_error', 'f1', 'loss'),
      ),
    )
    return outputs[valid], labels[valid], found

  def test_top_2_accuracy(self):
    outputs, labels, found = self._metrics(0)
    expected = sklearn_metrics.top_k_accuracy_score(labels, outputs, k=2)
    np.testing.assert_allclose(found['top_2'], expected, rtol=1e-6)
    self.assertTrue(np.isnan(found['f1']))
    self.assertTrue(np.isnan(found['absolute_error']))

  def test_errors_in_the_unit_of_the_task(self):
    outputs, labels, found = self._metrics(1)
    errors = np.abs(outputs[:, 0] - labels)
    np.testing.assert_allclose(
      found['absolute_error'], 2 * errors.mean(), rtol=1e-6
    )
    np.testing.assert_allclose(
      found['median_error'], np.median(errors), rtol=1e-6
    )
    np.testing.assert_allclose(found['mse'], 4 * (errors**2).mean(), rtol=1e-6)
    self.assertTrue(np.isnan(found['top_2']))

  def test_f1_is_a_ratio_of_sums(self):
    outputs, labels, found = self._metrics(2)
    labels = np.minimum(labels, 1)
    expected = sklearn_metrics.f1_score(labels, outputs[:, 0] > 0)
    np.testing.assert_allclose(found['f1'], expected, rtol=1e-6)
    self.assertEqual(set(found['weights']), {'f1'})

  def test_the_worst_clients_are_those_with_the_largest_errors(self):
    each = {
      'absolute_error': np.arange(20, dtype=np.float32)[:, None],
      'count': np.ones((20, 1), np.float32),
    }
    tasks = np.zeros((20, 1), np.int32)
    for lower, expected in ((('absolute_error',), 18.5), ((), 0.5)):
      found = testing.jit(evaluation.summarize, static_argnums=(2, 5))(
        each, tasks, 1, None, None, lower
      )
      worst = np.asarray(found['absolute_error_worst_decile'])
      self.assertEqual(worst[0], expected)


class MistakesTest(parameterized.TestCase):
  @parameterized.parameters(
    ({'name': 'top-2'}, 'letters, digits and _'),
    ({'name': 'count'}, 'not to be count, defined, weights'),
    ({'name': 'x_client_mean'}, "end in _client_mean.* got 'x_client_mean'"),
    ({'of_set': lambda a: a}, "'x' to have either values .* got both"),
    ({'values': None}, "'x' to have either values .* got neither"),
  )
  def test_of_a_metric(self, changes, sentence):
    settings = {'name': 'x', 'values': lambda a: a.losses} | changes
    with self.assertRaisesRegex(ValueError, sentence):
      metrics_lib.Metric(**settings)

  @parameterized.parameters(
    ({'metrics': [TOP_2, TOP_2]}, "'a' with different names, got top_2 more"),
    (
      {'metrics': [metrics_lib.Metric(name='loss', values=_top_2)]},
      'got loss more than once .its kind has accuracy',
    ),
    ({'kind': 'ranking'}, "got 'ranking'; give an own one as tasks.Kind"),
    (
      {'kind': dataclasses.replace(TOKENS, num_outputs=None), 'num_classes': 1},
      'num_classes >= 2',
    ),
  )
  def test_of_a_task(self, changes, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      tasks_lib.Task(**{'name': 'a'} | changes)

  def test_one_name_is_one_metric(self):
    other = dataclasses.replace(TOP_2, lower_is_better=True)
    tasks = [
      tasks_lib.multiclass('a', 3, metrics=[TOP_2]),
      tasks_lib.multiclass('b', 3, metrics=[other]),
    ]
    with self.assertRaisesRegex(ValueError, "'top_2' to be alike .* task 'b'"):
      evaluation.metric_names(tasks)

  @parameterized.parameters(
    (
      {'loss': lambda o, t, f: o.sum(0)},
      r'loss of task .* \(7,\), got \(4, 5\)',
    ),
    (
      {'loss': lambda o, t, f: f['x']},
      "loss of task 'forward' fails on outputs",
    ),
    (
      {'metrics': [metrics_lib.Metric(name='x', values=lambda a: a.outputs)]},
      "metric 'x' of task 'forward' fails .* a number for each example",
    ),
    (
      {
        'metrics': [
          metrics_lib.Metric(name='x', of_set=lambda a: (a.losses, True))
        ]
      },
      "metric 'x' of task 'forward' fails .* a single number",
    ),
  )
  def test_of_functions(self, changes, sentence):
    data = _data()
    first = dataclasses.replace(data.tasks[0], **changes)
    data = dataclasses.replace(data, tasks=(first, data.tasks[1]))
    with self.assertRaisesRegex(ValueError, sentence):
      _federation(data, 'task')

  @parameterized.named_parameters(
    ('of_an_empty_tree', {'labels': {}}, 'of an empty tree'),
    (
      'of_other_lengths',
      {'labels': {'a': np.zeros((60, 2, 3)), 'b': np.zeros((60, 1, 3))}},
      r'got the shapes \(60, 2, 3\), \(60, 1, 3\)',
    ),
    (
      'of_another_mask',
      {'present': np.ones((60, 3), bool)},
      r'got bool \(60, 3',
    ),
    (
      'of_another_type',
      {'present': np.ones((60, 2))},
      r'of bools with the shape \(60, 2\)',
    ),
    (
      'of_a_kind_with_one_number',
      {'tasks': [tasks_lib.binary('a')], 'client_tasks': [0] * 6},
      "task 'a', of which the kind 'binary' has a single number",
    ),
    (
      'of_tokens_that_there_are_not',
      {
        'labels': {
          **_examples()['labels'],
          'tokens': _examples()['labels']['tokens'] + 1,
        }
      },
      "task 'forward' to be tokens from 0 to 4, got others in clients 0, 1, 2",
    ),
  )
  def test_of_targets(self, changes, sentence):
    with self.assertRaisesRegex(ValueError, sentence):
      _data(**changes)

  def test_of_targets_that_are_partly_missing(self):
    labels = np.zeros((60, 2, 3))
    labels[4, 1, 0] = np.nan
    kind = dataclasses.replace(TOKENS, is_valid=kinds_lib.finite)
    tasks = [tasks_lib.Task(name='a', kind=kind, num_classes=3)]
    with self.assertRaisesRegex(ValueError, 'some in example 4; put a mask'):
      _data(labels=labels, present=None, tasks=tasks, client_tasks=[0] * 6)

  def test_nobody_says_what_wrong_tokens_are(self):
    data = attacks.mark(_data(), 0.4)
    settings = round_settings.RoundSettings(attack=attacks.get('label_flip'))
    with self.assertRaisesRegex(ValueError, "got 'symbols' of task 'forward'"):
      multi_task_fl.multi_task_fl(_federation(data, 'task'), LOCAL, settings)


class SavedPredictorTest(absltest.TestCase):
  def test_an_own_kind_is_given_again(self):
    data, state, _, (federation, algorithm), _ = _evaluated('task', 25)
    predictor = predictors.task_predictor(
      federation, algorithm, state, data, 'backward'
    )
    tokens = np.arange(VOCABULARY)[:, None]
    expected = (tokens - 1) % VOCABULARY
    np.testing.assert_array_equal(predictor.predict(tokens), expected)
    with self.assertRaisesRegex(
      ValueError, "'backward' is a symbols: it has no"
    ):
      predictor.probabilities(tokens)
    folder = pathlib.Path(
      self.enterContext(tempfile.TemporaryDirectory()), 'model'
    )
    predictor.save(folder)
    loaded = predictors.Predictor.load(folder, _model()[1], [TOKENS])
    self.assertEqual(loaded.task, predictor.task)
    np.testing.assert_array_equal(loaded.predict(tokens), expected)
    with self.assertRaisesRegex(ValueError, "got 'symbols'; give"):
      predictors.Predictor.load(folder, _model()[1])


if __name__ == '__main__':
  absltest.main()

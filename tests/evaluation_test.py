"""Laws of evaluation: metrics and summaries equal plain loops."""

import dataclasses
import functools
import math

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np

from fmtl_jax import evaluation
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.data import dataset
from fmtl_jax.data import partitions
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib

C, T, P = layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL
FROZEN = layer_types.PRETRAINED
BINARY, MULTI, VALUE = (
  tasks_lib.BINARY,
  tasks_lib.MULTICLASS,
  tasks_lib.REGRESSION,
)
NAN = float('nan')

_auc = testing.jit(evaluation.area_under_curve)
_example_metrics = testing.jit(evaluation.example_metrics, static_argnums=0)
_summarize = testing.jit(evaluation.summarize, static_argnums=2)


def _auc_by_hand(scores, positive):
  """The share of pairs in the right order, ties one half; O(n^2)."""
  wins = pairs = 0.0
  for high in scores[positive]:
    for low in scores[~positive]:
      wins += 1.0 if high > low else 0.5 if high == low else 0.0
      pairs += 1
  return wins / pairs if pairs else NAN


def _metrics_by_hand(task, outputs, labels):
  """The metrics of one model as their definitions have them, in float64."""
  metrics = dict.fromkeys(
    ('accuracy', 'balanced_accuracy', 'auc', 'mse', 'loss'), NAN
  )
  if not len(labels):
    return metrics
  if task.kind == VALUE:
    errors = [(row[0] - y) ** 2 for row, y in zip(outputs, labels, strict=True)]
    return metrics | {'mse': np.mean(errors), 'loss': np.mean(errors)}
  losses, correct = [], []
  for row, label in zip(outputs, labels, strict=True):
    logits = np.array([0, row[0]]) if task.kind == BINARY else row
    logits = logits[: task.num_classes]
    likelihood = np.exp(logits) / np.exp(logits).sum()
    losses.append(-np.log(likelihood[int(label)]))
    correct.append(logits.argmax() == label)
  recalls = [np.mean(np.array(correct)[labels == y]) for y in np.unique(labels)]
  if task.kind == BINARY:
    metrics['auc'] = _auc_by_hand(outputs[:, 0], labels == 1)
  return metrics | {
    'accuracy': np.mean(correct),
    'balanced_accuracy': np.mean(recalls),
    'loss': np.mean(losses),
  }


class _Naive:
  """Evaluates one model after the other, in NumPy."""

  def __init__(self, types, params, frozen, data):
    self.types, self.params, self.frozen = types, params, frozen
    self.data = data

  def model(self, client, slot, task):
    """The layers of one slot of one client."""
    layers = []
    for number, label in enumerate(self.types):
      name = f'layer_{number}'
      tree = self.frozen if label == FROZEN else self.params
      kernel, bias = tree[name]['kernel'], tree[name]['bias']
      row = {T: (task,), P: (client, slot)}.get(label, ())
      row = row[: np.ndim(bias) - 1]  # Personal layers by client or by slot.
      layers.append((np.asarray(kernel)[row], np.asarray(bias)[row]))
    return layers

  def metrics(self, client, slot, rows):
    """The metrics of one model on rows, and how many have a label."""
    number = int(self.data.partition.client_tasks[client, slot])
    task, examples = self.data.tasks[number], self.data.examples
    rows = [row for row in rows if examples.present[row, task.column]]
    x = np.asarray(examples.features, np.float64)[rows]
    for depth, (kernel, bias) in enumerate(self.model(client, slot, number)):
      x = (np.tanh(x) if depth else x) @ kernel + bias
    labels = examples.labels[rows, task.column]
    return _metrics_by_hand(task, x, labels) | {'count': len(rows)}

  def each(self, client_rows):
    """`(client, slot, task, metrics)` of every slot that has a task."""
    slots = np.ndenumerate(self.data.partition.client_tasks)
    return [
      (client, slot, task, self.metrics(client, slot, client_rows[client]))
      for (client, slot), task in slots
      if task < self.data.num_tasks
    ]

  def pooled(self, pooled_rows):
    """`[T + 1]` by metric: the mean over the models of a task's clients."""
    columns = []
    for task, members in enumerate(self.data.partition.members.groups()):
      slots = [divmod(int(member), self.data.num_slots) for member in members]
      models = [self.metrics(m, s, pooled_rows[task]) for m, s in slots]
      columns.append(
        {name: _mean([model[name] for model in models]) for name in models[0]}
      )
    return {
      name: [column[name] for column in columns]
      + [_mean([column[name] for column in columns])]
      for name in columns[0]
    }


def _mean(values, weights=None):
  """The weighted mean of what is defined."""
  values = np.array(values, np.float64)
  defined = ~np.isnan(values)
  weights = np.ones(len(values)) if weights is None else np.array(weights)
  if not weights[defined].sum():
    return NAN
  return np.average(values[defined], weights=weights[defined])


def _summary_by_hand(name, values, counts):
  """A metric's summaries over clients with examples and a defined value."""
  values, counts = np.array(values, np.float64), np.array(counts)
  chosen = (counts > 0) & ~np.isnan(values)
  values, counts = values[chosen], counts[chosen]
  if not len(values):
    return dict.fromkeys(('', '_client_mean', '_client_std'), NAN) | {
      '_worst_decile': NAN
    }
  worst_first = np.sort(values)
  if name in ('loss', 'mse'):
    worst_first = worst_first[::-1]
  return {
    '': (values * counts).sum() / counts.sum(),
    '_client_mean': values.mean(),
    '_client_std': np.sqrt(((values - values.mean()) ** 2).mean()),
    '_worst_decile': worst_first[: math.ceil(len(values) / 10)].mean(),
  }


def _rows(data, seed=0):
  """Rows by client and by task; some have no label, some clients no row."""
  rng = np.random.default_rng(seed)
  everything = np.arange(len(data.examples.labels))
  present = data.examples.present
  client_rows = [
    rng.choice(everything, rng.integers(1, 9), replace=False)
    for _ in range(data.num_clients)
  ]
  client_rows[1] = everything[:0]
  # Rows, but none with the label of the client's first task.
  column = data.tasks[data.partition.client_tasks[4, 0]].column
  client_rows[4] = np.flatnonzero(~present[:, column])[:3]
  pooled_rows = [
    rng.choice(everything, size, replace=False)
    for size in 5 + np.arange(data.num_tasks)
  ]
  return partitions.Rows.create(client_rows), partitions.Rows.create(
    pooled_rows
  )


def _state(federation, seed=0):
  """A state in which all owners have different values."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(federation.init_params, jax.random.key(0))
  return algorithm_lib.State(
    params=jax.tree.map(
      lambda x: rng.normal(size=x.shape).astype(np.float32), shapes
    ),
    server={},
    clients=(),
    key=jax.random.key(0),
    round=jnp.int32(0),
  )


def _evaluator(federation, execution='vmap', **changes):
  algorithm = multi_task_fl.multi_task_fl(federation)._replace(**changes)
  return testing.jit(evaluation.evaluator(federation, algorithm, execution))


@functools.cache
def _several():
  """A federation of several slots, its data, state, rows and evaluator."""
  data = testing.toy_data(7, 3, 2, kinds=[VALUE, BINARY, MULTI], missing=0.4)
  federation, _ = testing.toy_federation([C, T, P], data)
  state, rows = _state(federation), _rows(data)
  return federation, data, state, rows, _evaluator(federation)


class EvaluatorTest(parameterized.TestCase):
  @parameterized.named_parameters(
    ('one_binary_model', [C, C], 1, [BINARY]),
    ('pretrained_and_slots', [FROZEN, C, T], 2, [BINARY, MULTI]),
    ('personal_layers', [P, T], 1, [MULTI, BINARY]),
    ('personal_by_slot',),
    ('personal_output', [P, P], 3, [BINARY, VALUE]),
  )
  def test_it_equals_a_loop_over_models(
    self, types=(C, T, P), num_slots=2, kinds=()
  ):
    if kinds:
      data = testing.toy_data(7, 3, num_slots, kinds=kinds, missing=0.4)
      federation, _ = testing.toy_federation(types, data)
      state, rows = _state(federation), _rows(data)
      evaluate = _evaluator(federation)
    else:
      federation, data, state, rows, evaluate = _several()
    frozen = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), federation.frozen)
    actual = evaluate(state, data, *rows, frozen)
    naive = _Naive(types, state.params, frozen, data)
    names = evaluation.metric_names(data.tasks)
    each = naive.each(rows[0].groups())
    pooled = naive.pooled(rows[1].groups())

    self.assertCountEqual(actual['each'], [*names, 'count'])
    self.assertCountEqual(actual['pooled'], names)
    self.assertLen(actual['client'], 4 * len(names))
    for name in actual['each']:
      expected = np.full((7, num_slots), NAN)
      for client, slot, _, metrics in each:
        expected[client, slot] = metrics[name]
      np.testing.assert_allclose(
        actual['each'][name], expected, rtol=1e-4, atol=1e-5, err_msg=name
      )
    for name in names:
      np.testing.assert_allclose(
        actual['pooled'][name], pooled[name], rtol=1e-4, atol=1e-5, err_msg=name
      )
      for group in range(4):
        members = [m for *_, task, m in each if group in (task, data.num_tasks)]
        expected = _summary_by_hand(
          name, [m[name] for m in members], [m['count'] for m in members]
        )
        for suffix, value in expected.items():
          np.testing.assert_allclose(
            actual['client'][name + suffix][group],
            value,
            rtol=1e-4,
            atol=1e-5,
            err_msg=f'{name}{suffix} of {group}',
          )

  @parameterized.parameters('auto', 'chunk:3')
  def test_how_clients_are_mapped_does_not_matter(self, execution):
    federation, data, state, rows, evaluate = _several()
    testing.assert_trees_close(
      _evaluator(federation, execution)(state, data, *rows, federation.frozen),
      evaluate(state, data, *rows, federation.frozen),
      rtol=1e-4,
      atol=1e-5,
    )

  def test_padded_rows_are_not_looked_at(self):
    federation, data, state, rows, evaluate = _several()

    def padded(garbage):
      """The data and the rows, behind them examples full of garbage."""
      examples = data.examples
      more = dataclasses.replace(
        examples,
        features=np.append(examples.features, np.full((4, 3), garbage), 0),
        labels=np.append(examples.labels, np.full((4, 3), garbage), 0),
        present=np.append(examples.present, np.ones((4, 3), bool), 0),
      )
      longer = [
        partitions.Rows(
          index=np.append(part.index, len(examples.labels) + np.arange(4)),
          offsets=part.offsets,
          max_size=part.max_size + 5,
        )
        for part in rows
      ]
      return dataclasses.replace(data, examples=more), *longer

    with_nan, with_numbers, expected = (
      evaluate(state, *given, federation.frozen)
      for given in (
        padded(np.float32(NAN)),
        padded(np.float32(1e30)),
        (data, *rows),
      )
    )
    testing.assert_trees_equal(with_nan, with_numbers)
    testing.assert_trees_close(with_nan, expected, rtol=1e-4, atol=1e-5)

  def test_without_any_examples_nothing_is_defined(self):
    data = testing.toy_data(4, 2, kinds=[BINARY])
    federation, _ = testing.toy_federation([C, T], data)
    result = _evaluator(federation)(
      _state(federation),
      data,
      data.partition.validation,
      data.partition.pooled_validation,
    )
    np.testing.assert_array_equal(result['each'].pop('count'), np.zeros((4, 1)))
    for leaf in jax.tree.leaves(result):
      self.assertTrue(np.isnan(leaf).all())

  def test_clients_predict_with_the_view_of_the_algorithm(self):
    """Here client m answers m, whatever the state: its error is known."""
    labels = [[0.0, 1.0], [5.0], [2.0, 2.0, 5.0]]
    federation, data = testing.mean_estimation(labels, [0, 1, 0], C)

    def view(unused_state, unused_data, client, unused_frozen):
      return {'output': {'bias': client.client[None].astype(jnp.float32)}}

    evaluate = _evaluator(federation, view=view, personal=True)
    pooled = partitions.Rows.create([[0, 2], [1]])
    result = evaluate(_state(federation), data, data.partition.train, pooled)
    np.testing.assert_allclose(result['each']['mse'][:, 0], [0.5, 16, 3])
    # Task 0: the labels 0 and 5 for clients 0 and 2. Task 1: 1 for client 1.
    np.testing.assert_allclose(
      result['pooled']['mse'], [(12.5 + 6.5) / 2, 0, 4.75]
    )
    # A federation of shared models asks the first client of each task only.
    evaluate = _evaluator(federation, view=view, personal=False)
    result = evaluate(_state(federation), data, data.partition.train, pooled)
    np.testing.assert_allclose(result['pooled']['mse'], [12.5, 0, 6.25])


class MetricNamesTest(parameterized.TestCase):
  @parameterized.parameters(
    ([BINARY], ('accuracy', 'balanced_accuracy', 'auc', 'loss')),
    ([MULTI], ('accuracy', 'balanced_accuracy', 'loss')),
    ([VALUE], ('mse', 'loss')),
    ([VALUE, BINARY], ('accuracy', 'balanced_accuracy', 'auc', 'mse', 'loss')),
  )
  def test_they_are_those_of_the_tasks(self, kinds, expected):
    tasks = tuple(tasks_lib.Task(name=kind, kind=kind) for kind in kinds)
    self.assertEqual(evaluation.metric_names(tasks), expected)


class AreaUnderCurveTest(parameterized.TestCase):
  @parameterized.parameters(*range(8))
  def test_it_is_the_share_of_ordered_pairs(self, seed):
    rng = np.random.default_rng(seed)
    # Few values, so that ties are many; some examples are not valid.
    scores = rng.integers(-3, 4, 30).astype(np.float32)
    positive, valid = rng.random(30) < 0.4, rng.random(30) < 0.7
    scores[~valid] = rng.choice([NAN, 1e9, -1e9, 0.0], (~valid).sum())
    np.testing.assert_allclose(
      _auc(scores, positive, valid),
      _auc_by_hand(scores[valid], positive[valid]),
      rtol=1e-6,
    )

  @parameterized.parameters(
    ([1, 2, 3, 4], [0, 0, 1, 1], 1.0),
    ([4, 3, 2, 1], [0, 0, 1, 1], 0.0),
    ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
    ([1, 2, 2, 3], [0, 0, 1, 1], 0.875),
    ([1, 2, 3, 4], [1, 1, 1, 1], NAN),
    ([1, 2, 3, 4], [0, 0, 0, 0], NAN),
  )
  def test_by_hand(self, scores, positive, expected):
    actual = _auc(
      np.array(scores, np.float32), np.array(positive, bool), np.ones(4, bool)
    )
    np.testing.assert_allclose(actual, expected)


class ExampleMetricsTest(parameterized.TestCase):
  TASKS = (
    tasks_lib.Task(name='three', kind=MULTI, num_classes=3),
    tasks_lib.Task(name='value', kind=VALUE),
    tasks_lib.Task(name='two'),
  )

  def _metrics(self, outputs, labels, valid, task):
    losses = np.arange(len(labels), dtype=np.float32)
    return _example_metrics(
      self.TASKS,
      losses,
      np.array(outputs, np.float32),
      np.array(labels, np.float32),
      np.array(valid, bool),
      task,
    )

  def test_outputs_a_task_lacks_are_no_answer(self):
    metrics = self._metrics(
      # The fourth output belongs to no task of this width.
      [[0, 2, 1, 9], [3, 1, 0, 9], [0, 0, 1, 9], [5, 0, 0, 9]],
      [1, 0, 2, 1],
      [1, 1, 1, 1],
      0,
    )
    self.assertEqual(metrics['accuracy'], 0.75)
    np.testing.assert_allclose(metrics['balanced_accuracy'], 2.5 / 3)
    self.assertEqual(metrics['loss'], 1.5)
    self.assertEqual(metrics['count'], 4)
    self.assertTrue(np.isnan(metrics['auc']))
    self.assertTrue(np.isnan(metrics['mse']))

  def test_balanced_accuracy_is_the_mean_over_the_classes_present(self):
    metrics = self._metrics(
      [[-1] * 4, [1] * 4, [-2] * 4, [-3] * 4, [3] * 4, [3] * 4],
      [0, 0, 0, 0, 1, 1],
      [1, 1, 1, 1, 1, 0],
      2,
    )
    self.assertEqual(metrics['accuracy'], np.float32(0.8))
    self.assertEqual(metrics['balanced_accuracy'], 0.875)

  def test_only_valid_examples_count(self):
    metrics = self._metrics(
      [[1, 0, 0, 0], [NAN] * 4, [5, 0, 0, 0]], [3, NAN, 4], [1, 0, 1], 1
    )
    self.assertEqual(metrics['mse'], 2.5)
    self.assertEqual(metrics['loss'], 1.0)
    self.assertEqual(metrics['count'], 2)
    self.assertTrue(np.isnan(metrics['accuracy']))


class SummarizeTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.values = rng.random((25, 1)).astype(np.float32)
    self.count = rng.integers(1, 20, (25, 1)).astype(np.float32)
    self.tasks = np.repeat([0, 1], [21, 4])[:, None].astype(np.int32)

  def _summarize(self, name='accuracy'):
    names = ('accuracy', 'auc', 'mse', 'loss')  # One program for all.
    each = dict.fromkeys(names, self.values) | {'count': self.count}
    result = _summarize(each, self.tasks, 2)
    return {
      key: np.asarray(value)
      for key, value in result.items()
      if key.startswith(name)
    }

  def _check(self, result, name, group, chosen):
    expected = _summary_by_hand(
      name, self.values[chosen, 0], self.count[chosen, 0]
    )
    for suffix, value in expected.items():
      np.testing.assert_allclose(
        result[name + suffix][group], value, rtol=1e-5, err_msg=suffix
      )

  @parameterized.parameters('accuracy', 'auc', 'mse', 'loss')
  def test_it_equals_the_definitions(self, name):
    result = self._summarize(name)
    self._check(result, name, 0, np.arange(21))
    self._check(result, name, 1, np.arange(21, 25))
    self._check(result, name, 2, np.arange(25))

  def test_the_worst_tenth_is_rounded_up(self):
    self.values[:, 0] = np.arange(25)[::-1]
    result = self._summarize()
    # Of 21 clients the worst 3 have 4, 5, 6, of 4 the worst has 0, of 25 the
    # worst 3 have 0, 1, 2.
    np.testing.assert_allclose(result['accuracy_worst_decile'], [5, 0, 1])
    result = self._summarize('loss')
    np.testing.assert_allclose(result['loss_worst_decile'], [23, 3, 23])

  def test_clients_without_a_value_do_not_count(self):
    self.values[[3, 22]] = NAN
    self.values[5], self.count[5] = -100, 0
    result = self._summarize()
    chosen = np.setdiff1d(np.arange(25), [3, 5, 22])
    self._check(result, 'accuracy', 2, chosen)
    self._check(result, 'accuracy', 1, [21, 23, 24])

  def test_an_empty_slot_does_not_count(self):
    self.tasks[[0, 24]] = 2
    self.values[[0, 24]] = -100
    result = self._summarize()
    self._check(result, 'accuracy', 2, np.arange(1, 24))
    self._check(result, 'accuracy', 0, np.arange(1, 21))

  def test_a_task_without_values_has_none(self):
    self.count[21:] = 0
    for name, values in self._summarize().items():
      np.testing.assert_array_equal(
        np.isnan(values), [False, True, False], err_msg=name
      )


class MajorityClassTest(parameterized.TestCase):
  def test_it_answers_the_most_frequent_training_label(self):
    data = dataset.FederatedDataset.create(
      features=np.zeros((10, 1)),
      labels=np.array(
        [
          [2, 0, 1],
          [2, 0, 1],
          [0, 1, 1],
          [1, 1, 1],
          [1, NAN, 1],
          [1, NAN, 1],
          [2, 1, 5],
          [1, 1, 5],
          [NAN, 0, 5],
          [2, NAN, 5],
        ]
      ),
      tasks=[
        tasks_lib.Task(name='three', kind=MULTI, num_classes=3),
        tasks_lib.Task(name='two', column=1),
        tasks_lib.Task(name='value', kind=VALUE, column=2),
      ],
      # Rows 3 to 5, all of class 1, train client 2 for other tasks only.
      client_tasks=[[0, 1], [0, -1], [1, 2]],
      train=[[0, 2], [1], [3, 4, 5]],
    )
    rows = partitions.Rows.create([[6, 7, 8, 9], [6, 7, 8, 9], [6]])
    # Task 0 trains on labels 2, 0, 2; task 1 on 0, 1, 1.
    np.testing.assert_allclose(
      evaluation.majority_class(data, rows),
      [2 / 3, 2 / 3, NAN, 2 / 3],
    )


class OwnUnitTest(absltest.TestCase):
  def test_squared_errors_are_in_the_unit_of_the_task(self):
    tasks = (
      tasks_lib.Task(name='a', kind=tasks_lib.REGRESSION),
      tasks_lib.Task(name='b', kind=tasks_lib.REGRESSION, offset=7.0, unit=3.0),
    )
    outputs, labels = np.float32([[1.0], [2.0]]), np.float32([0.0, 4.0])
    losses = np.square(outputs[:, 0] - labels)
    for number, expected in ((0, 2.5), (1, 22.5)):
      found = _example_metrics(
        tasks, losses, outputs, labels, np.ones(2, bool), number
      )
      self.assertAlmostEqual(float(found['mse']), expected, places=5)
      self.assertAlmostEqual(float(found['loss']), 2.5, places=5)


if __name__ == '__main__':
  absltest.main()

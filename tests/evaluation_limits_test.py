"""Laws of evaluation where it goes wrong: NaN, rare classes, many tasks."""

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
from sklearn import metrics as sklearn_metrics

from fmtl_jax import evaluation
from fmtl_jax import federation as federation_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.data import dataset
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import algorithm as algorithm_lib

BINARY, MULTI, VALUE = (
  tasks_lib.BINARY,
  tasks_lib.MULTICLASS,
  tasks_lib.REGRESSION,
)
NAN = float('nan')
_auc = jax.jit(evaluation.area_under_curve)
_example_metrics = testing.jit(evaluation.example_metrics, static_argnums=0)
_summarize = jax.jit(evaluation.summarize, static_argnums=2)


def _constant_answers(answers, labels, client_tasks, tasks, personal=True):
  """Clients answer numbers of their own, on labels of their own.

  Args:
    answers: `[M][O]`, the outputs of each client whatever the example.
    labels: `[M][N]`, NaN for none.
    client_tasks: `[M]`.
    tasks: T tasks.
    personal: Whether a task's common set is answered by all its clients.

  Returns:
    What an evaluation says, with these labels for both views.
  """
  labels = [[0.0, *row] for row in labels]  # The first one to train with.
  ends = np.cumsum([len(row) for row in labels])
  rows = [
    np.arange(end - len(row), end)
    for row, end in zip(labels, ends, strict=True)
  ]
  data = dataset.FederatedDataset.create(
    features=np.zeros((ends[-1], 1), np.float32),
    labels=np.concatenate(labels),
    tasks=tasks,
    client_tasks=client_tasks,
    train=[of_client[:1] for of_client in rows],
    test=[of_client[1:] for of_client in rows],
    check=False,
  )
  width = tasks_lib.num_outputs(tasks)
  table = jnp.asarray(answers, jnp.float32)
  federation = federation_lib.Federation.create(
    (
      lambda unused_key: {'output': {'bias': jnp.zeros(width)}},
      lambda params, x: jnp.zeros((len(x), 1)) + params['output']['bias'],
    ),
    [('.*', layer_types.COMMON)],
    data,
  )
  algorithm = multi_task_fl.multi_task_fl(federation)._replace(
    view=lambda state, unused_data, client, frozen: {
      'output': {'bias': table[client.client]}
    },
    personal=personal,
  )
  state = algorithm_lib.State(
    params={'output': {'bias': jnp.zeros(width)}},
    server={},
    clients=(),
    key=jax.random.key(0),
    round=jnp.int32(0),
  )
  evaluate = testing.jit(evaluation.evaluator(federation, algorithm))
  return evaluate(state, data, data.partition.test, data.partition.pooled_test)


class NonFiniteOutputsTest(parameterized.TestCase):
  """A model that answers NaN is as good at nothing."""

  @parameterized.parameters(NAN, np.inf, -np.inf)
  def test_no_metric_is_a_number(self, answer):
    tasks = tuple(
      tasks_lib.Task(name=kind, kind=kind, num_classes=2)
      for kind in (BINARY, MULTI, VALUE)
    )
    outputs = np.zeros((4, 2), np.float32)
    outputs[1, 0] = answer
    for number, task in enumerate(tasks):
      found = _example_metrics(
        tasks,
        np.ones(4, np.float32),
        outputs,
        np.array([0, 0, 0, 1], np.float32),
        np.ones(4, bool),
        np.int32(number),
      )
      for name in evaluation.metric_names((task,)):
        self.assertTrue(np.isnan(found[name]), name)
      self.assertEqual(found['count'], 4)

  def test_what_does_not_count_may_be_anything(self):
    """An example that is not valid, and an output that no task has."""
    outputs = np.zeros((3, 3), np.float32)
    outputs[0], outputs[:, 2] = NAN, NAN
    found = _example_metrics(
      (tasks_lib.Task(name='a', kind=MULTI, num_classes=2),),
      np.ones(3, np.float32),
      outputs,
      np.zeros(3, np.float32),
      np.array([False, True, True]),
      jnp.int32(0),
    )
    self.assertEqual(found['accuracy'], 1.0)

  def test_a_client_that_broke_is_not_left_out_of_means(self):
    """Three of four right answers and a NaN are no accuracy of 1 or 0.75."""
    tasks = [tasks_lib.Task(name='a'), tasks_lib.Task(name='b')]
    found = _constant_answers(
      [[1.0], [NAN], [1.0]],
      [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0, 0.0]],
      [0, 0, 1],
      tasks,
    )
    for name in ('accuracy', 'balanced_accuracy', 'auc', 'loss'):
      for view, suffixes in (
        ('pooled', ('',)),
        ('client', ('', '_client_mean', '_client_std', '_worst_decile')),
      ):
        for suffix in suffixes:
          broken = np.isnan(found[view][name + suffix])
          np.testing.assert_array_equal(
            broken, [True, False, True], view + name + suffix
          )
    np.testing.assert_allclose(found['each']['accuracy'][::2, 0], [0.5, 2 / 3])
    self.assertTrue(np.isnan(found['each']['accuracy'][1, 0]))

  def test_what_is_not_defined_leaves_the_means(self):
    """One class has no AUC, no label no metric, a value no accuracy."""
    tasks = [
      tasks_lib.Task(name='one_class'),
      tasks_lib.Task(name='none'),
      tasks_lib.Task(name='value', kind=VALUE),
      tasks_lib.Task(name='both'),
    ]
    views = _constant_answers(
      [[1.0], [NAN], [3.0], [1.0]],
      [[1.0, 1.0], [NAN, NAN], [2.0, 4.0], [0.0, 1.0]],
      [0, 1, 2, 3],
      tasks,
    )
    for view in ('pooled', 'client'):
      found = views[view]
      np.testing.assert_allclose(found['accuracy'], [1, NAN, NAN, 0.5, 0.75])
      np.testing.assert_allclose(found['auc'], [NAN, NAN, NAN, 0.5, 0.5])
      np.testing.assert_allclose(found['mse'], [NAN, NAN, 1, NAN, 1])
      np.testing.assert_array_equal(np.isnan(found['loss'])[:4], [0, 1, 0, 0])
      self.assertFalse(np.isnan(found['loss'][4]))

  def test_a_worst_tenth_with_a_nan_is_none(self):
    values = np.linspace(0, 1, 30, dtype=np.float32)[:, None]
    values[3] = NAN
    each = {'accuracy': values, 'count': np.ones((30, 1), np.float32)}
    defined = {'accuracy': np.ones((30, 1), bool)}
    tasks = np.arange(30, dtype=np.int32)[:, None] % 2
    found = _summarize(each, tasks, 2, defined)
    for suffix in ('', '_client_mean', '_client_std', '_worst_decile'):
      np.testing.assert_array_equal(
        np.isnan(found['accuracy' + suffix]), [False, True, True], suffix
      )


class AreaUnderCurveTest(parameterized.TestCase):
  """Against scikit-learn, in float64, at sizes where float32 ends."""

  @parameterized.product(
    share=(0.001, 0.5, 0.999), scores=('noise', 'ties', 'separated')
  )
  def test_it_equals_scikit_learn(self, share, scores):
    rng = np.random.default_rng(0)
    positive = rng.random(100_000) < share
    values = rng.normal(size=len(positive)) + positive
    if scores == 'ties':
      values = np.round(values)
    if scores == 'separated':
      values = positive + 0.5 * rng.random(len(positive))
    values = values.astype(np.float32)
    found = float(_auc(values, positive, np.ones(len(positive), bool)))
    expected = sklearn_metrics.roc_auc_score(positive, values)
    self.assertLessEqual(found, 1.0)
    self.assertAlmostEqual(found, expected, delta=1e-6)

  def test_a_score_that_is_no_number_has_no_rank(self):
    scores = np.array([0, NAN, 2, 3], np.float32)
    positive = np.array([False, True, True, True])
    self.assertTrue(np.isnan(_auc(scores, positive, np.ones(4, bool))))
    self.assertEqual(_auc(scores, positive, ~np.isnan(scores)), 1.0)


class ManyTasksTest(parameterized.TestCase):
  def test_memory_is_linear_in_tasks_and_clients(self):
    """Ten times the tasks and clients need ten times the memory."""

    def bytes_of(count):
      column = jax.ShapeDtypeStruct((count, 1), np.float32)
      each = dict.fromkeys(('accuracy', 'auc', 'loss', 'count'), column)
      tasks = jax.ShapeDtypeStruct((count, 1), np.int32)
      compiled = _summarize.lower(each, tasks, count).compile()
      return compiled.memory_analysis().temp_size_in_bytes

    self.assertLess(bytes_of(10_000), 20 * bytes_of(1000))

  def test_groups_of_all_sizes_equal_the_definitions(self):
    rng = np.random.default_rng(0)
    num_tasks = 40
    tasks = np.repeat(np.arange(num_tasks), np.arange(num_tasks))
    tasks = rng.permutation(np.append(tasks, [num_tasks] * 9)).astype(np.int32)
    values = np.round(rng.random(len(tasks)), 1).astype(np.float32)
    count = rng.integers(0, 3, len(tasks)).astype(np.float32)
    each = {'accuracy': values[:, None], 'count': count[:, None]}
    each['loss'] = each['accuracy']
    found = _summarize(each, tasks[:, None], num_tasks)
    groups = [tasks == task for task in range(num_tasks)]
    for number, chosen in enumerate([*groups, tasks < num_tasks]):
      chosen &= count > 0
      of_group, weights = values[chosen], count[chosen]
      if not len(of_group):
        self.assertTrue(np.isnan(found['loss_worst_decile'][number]))
        continue
      tenth = -(-len(of_group) // 10)
      expected = {
        'accuracy': np.average(of_group, weights=weights),
        'loss_client_mean': of_group.mean(),
        'loss_client_std': of_group.std(),
        'accuracy_worst_decile': np.sort(of_group)[:tenth].mean(),
        'loss_worst_decile': np.sort(of_group)[-tenth:].mean(),
      }
      for name, value in expected.items():
        np.testing.assert_allclose(
          found[name][number], value, rtol=1e-5, atol=1e-6, err_msg=name
        )


class MajorityTest(parameterized.TestCase):
  def _data(self, labels, client_tasks=(0, 1, 1)):
    rows = [np.arange(4) + 4 * client for client in range(3)]
    return dataset.FederatedDataset.create(
      features=np.zeros((12, 1), np.float32),
      labels=np.array(labels, np.float32),
      tasks=[tasks_lib.Task(name='a'), tasks_lib.Task(name='b', column=1)],
      client_tasks=np.array(client_tasks),
      train=[r[:2] for r in rows],
      test=[r[2:] for r in rows],
    )

  def test_clients_are_asked_for_their_own_examples(self):
    """Task b trains on 1, 1, 0, 1 and is tested on 1, 0 and 0, 0."""
    data = self._data(
      [[0, 1]] * 2
      + [[0, 0]] * 2
      + [[1, 1]] * 3
      + [[1, 0]] * 2
      + [[1, 1]]
      + [[1, 0]] * 2
    )
    each, summary = evaluation.majority_of_clients(data, data.partition.test)
    np.testing.assert_array_equal(each['accuracy'][:, 0], [1, 0.5, 0])
    np.testing.assert_array_equal(each['count'][:, 0], [2, 2, 2])
    np.testing.assert_allclose(summary['accuracy'], [1, 0.25, 0.5])
    np.testing.assert_allclose(
      summary['accuracy_client_std'], [0, 0.25, np.std([1, 0.5, 0])]
    )
    np.testing.assert_allclose(summary['accuracy_worst_decile'], [1, 0, 0])

  def test_it_is_no_fault_where_nan_is_one(self):
    data = self._data(([[0, 1]] * 2 + [[0, NAN]] * 2) * 3)
    with jax.debug_nans(True):
      _, summary = evaluation.majority_of_clients(data, data.partition.test)
    np.testing.assert_array_equal(summary['accuracy'], [1, NAN, 1])

  def test_a_task_that_nobody_has_a_label_of_has_no_value(self):
    """Neither labels to train with (b), nor to test with (a)."""
    data = dataset.FederatedDataset.create(
      features=np.zeros((6, 1), np.float32),
      labels=np.array(
        [[1, NAN, 0], [1, NAN, 0], [NAN, 1, 0], [NAN, 1, 1], [NAN, 0, 0]]
        + [[NAN, 0, 0]],
        np.float32,
      ),
      tasks=[
        tasks_lib.Task(name=name, column=column)
        for column, name in enumerate('abc')
      ],
      client_tasks=np.array([[0, 1, 2]]),
      train=[np.arange(2)],
      test=[np.arange(2, 6)],
    )
    np.testing.assert_allclose(
      evaluation.majority_class(data, data.partition.pooled_test),
      [NAN, NAN, 0.75, 0.75],
    )
    each, summary = evaluation.majority_of_clients(data, data.partition.test)
    np.testing.assert_allclose(each['accuracy'], [[NAN, NAN, 0.75]])
    np.testing.assert_allclose(summary['accuracy'], [NAN, NAN, 0.75, 0.75])


if __name__ == '__main__':
  absltest.main()

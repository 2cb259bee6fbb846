"""Laws of tables as sources: who the clients are, and which tasks they have."""

import pathlib
import tempfile

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.building import build
from experiments.building import checks
from experiments.building import datasets
from experiments.building import federating
from experiments.configuration import cases
from experiments.configuration import config as config_lib
from experiments.studies import held_out_data
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import ai4i
from fmtl_jax.data import heart_disease
from fmtl_jax.data import schools
from fmtl_jax.data import transactions
from tests.data import small_tables
from tests.experiments.building import toy_sources


class TableSourcesTestCase(parameterized.TestCase):
  folder: str

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = cls.enterClassContext(tempfile.TemporaryDirectory())
    small_tables.write(pathlib.Path(cls.folder))
    cls.enterClassContext(small_tables.installed())

  def data(self, name, **fields):
    drawn = {'synthetic.owners': small_tables.OWNERS, 'synthetic.examples': 40}
    return toy_sources.data(
      name=name,
      manual_dir=self.folder,
      partition='key',
      validation_fraction=0.0,
      **drawn | fields,
    )

  def load(self, name, **fields):
    return datasets.load(self.data(name, **fields))


class SourcesTest(TableSourcesTestCase):
  @parameterized.parameters(
    ('exam', '', 'school 10', 'regression'),
    ('math_achieve', '', 'school 20', 'regression'),
    ('bdf', '', 'school 30', 'regression'),
    ('star', 'read2', 'school 3', 'regression'),
    ('parkinsons', 'total', 'patient 2', 'regression'),
    ('landmine', '', 'site 4', 'binary'),
    ('heart_disease', 'disease', 'Long Beach', 'binary'),
    ('ai4i', 'HDF', 'grade H', 'binary'),
    ('credit', '', 'lending_club', 'binary'),
    ('transactions', 'takeover', 'bank 3', 'binary'),
    ('farms', 'pest', 'site 1', 'multiclass'),
  )
  def test_every_owner_is_a_task(self, name, kind, task, what):
    source = self.load(name, kind=kind)
    dataset = federating.federate(source, self.data(name, kind=kind), 0)
    owners = {'ai4i': 3, 'credit': 2}.get(name, small_tables.OWNERS)
    self.assertEqual(dataset.num_clients, owners)
    self.assertIn(task, [t.name for t in dataset.tasks])
    self.assertEqual({t.kind for t in dataset.tasks}, {what})
    client = [t.name for t in dataset.tasks].index(task)
    place = int(np.flatnonzero(dataset.partition.client_tasks == client)[0])
    rows = toy_sources.rows_of(dataset, 'train')[place]
    self.assertEqual(set(source.keys[rows]), {source.task_keys[task]})

  @parameterized.parameters(
    ('star', schools.STAR_TARGETS),
    ('parkinsons', ('motor_UPDRS', 'total_UPDRS')),
    ('ai4i', ai4i.TARGETS),
    ('transactions', transactions.TARGETS),
    ('farms', ('crop', 'pest')),
  )
  def test_owners_share_tasks_of_which_some_labels_are_missing(
    self, name, tasks
  ):
    data = self.data(name, tasks_per_client=len(tasks))
    dataset = federating.federate(self.load(name), data, 0)
    self.assertEqual(tuple(t.name for t in dataset.tasks), tasks)
    np.testing.assert_array_equal(
      dataset.partition.client_tasks, [range(len(tasks))] * dataset.num_clients
    )
    present = np.asarray(dataset.examples.present)
    self.assertEqual(present.all(), name != 'star')

  def test_pupils_and_their_classes_are_parties(self):
    source = self.load('star')
    pupil, school = source.parties['pupil'], source.parties['school']
    self.assertCountEqual((*pupil, *school), range(source.features.shape[1]))
    self.assertLen(school, 4 * (len(('regular', 'aide', 'small')) + 1))
    data = self.data('star')
    data.vertical.split, data.vertical.alignment = 'blocks', 'plain'
    rows = datasets.load(data)
    self.assertEqual(rows.features.shape, source.features.shape)
    np.testing.assert_array_equal(
      rows.features, source.features[:, [*pupil, *school]]
    )

  def test_a_hospital_has_no_label_of_a_task(self):
    source = self.load('heart_disease')
    data = self.data('heart_disease', tasks_per_client=2)
    dataset = federating.federate(source, data, 0)
    self.assertEqual(
      [(t.name, t.num_classes) for t in dataset.tasks],
      [(heart_disease.DISEASE, 2), (heart_disease.SEVERITY, 5)],
    )
    hospitals = sorted(heart_disease.HOSPITALS)
    counts = dict(
      zip(hospitals, dataset.partition.label_counts.tolist(), strict=True)
    )
    self.assertEqual(counts['Hungary'], [10, 0])
    self.assertEqual(counts['Cleveland'], [10, 10])
    alone = self.load('heart_disease', kind='severity')
    self.assertNotIn('Hungary', [task.name for task in alone.tasks])

  def test_a_grade_lacks_the_labels_of_a_mode(self):
    data = self.data('ai4i', kind='partial', tasks_per_client=5)
    dataset = federating.federate(self.load('ai4i', kind='partial'), data, 0)
    counts = np.asarray(dataset.partition.label_counts)
    lacking = [ai4i.UNLOGGED[grade] for grade in sorted(ai4i.GRADES)]
    self.assertEqual(
      [[ai4i.TARGETS[i] for i in np.flatnonzero(row == 0)] for row in counts],
      [[name] for name in lacking],
    )

  @parameterized.parameters(
    ('exam', {'kind': 'x'}, "data.kind of 'exam' to be one of '', got 'x'"),
    ('star', {'kind': 'read4'}, "'read3', 'math3', got 'read4'"),
    ('landmine', {'manual_dir': ''}, 'folder with LandmineData.mat of http'),
    ('digits', {'intercept': True}, "rows of numbers .* of 'digits'"),
    (
      'transactions',
      {'synthetic.owners': 0},
      'data.synthetic.owners and data.synthetic.examples .* got 0 and',
    ),
    ('farms', {'synthetic.alpha': -1.0}, 'data.synthetic.alpha.* above 0'),
  )
  def test_other_settings_are_refused(self, name, fields, sentence):
    data = self.data(name)
    for field, value in fields.items():
      config_lib.set_field(data, field, value)
    with self.assertRaisesRegex(ValueError, sentence):
      datasets.load(data)


class StandardizedTest(TableSourcesTestCase):
  def test_the_intercept_stays(self):
    fields = {'intercept': True, 'standardize': True}
    source = self.load('exam', **fields)
    np.testing.assert_array_equal(source.features[:, -1], 1)
    dataset = federating.federate(source, self.data('exam', **fields), 0)
    mean, scale = dataset.partition.standardization
    self.assertEqual((mean[-1], scale[-1]), (0, 1))
    self.assertTrue((scale[:-1] != 1).all())

  def config(self, how):
    config = config_lib.default_config()
    config.data = self.data('exam', standardize_targets=how)
    config.model.hidden = ()
    config.report.metric = 'mse'
    config.unseen.clients = 1
    config.unseen.examples = (0, 2)
    return config

  def test_one_model_of_all_has_one_unit(self):
    source = self.load('exam')
    offsets = {}
    for how in ('column', 'task'):
      config = cases.resolve('centralized_joint', self.config(how), {})
      built = build.build('centralized_joint', config, source, [0])
      joint, test = built.runs.train.targets, built.runs.test.targets
      self.assertEqual(joint.offset.shape, (1, 1))
      np.testing.assert_array_equal(test.offset[0], [joint.offset[0, 0]] * 4)
      offsets[how] = joint.offset
    np.testing.assert_array_equal(*offsets.values())
    separate = cases.resolve('distributed_separate', self.config('task'), {})
    built = build.build('distributed_separate', separate, source, [0])
    self.assertLen(set(built.runs.train.targets.offset[0].tolist()), 4)

  def test_held_out_clients_have_the_units_of_those_that_train(self):
    found = held_out_data.hold_out(self.load('exam'), self.config('task'), 0)
    kept = found.train.partition
    rows = np.concatenate(kept.train.groups())
    labels = found.train.examples.labels[rows, 0]
    (offset,), (unit,), _ = found.held_out.partition.targets
    np.testing.assert_allclose(
      [offset, unit], [labels.mean(), labels.std()], rtol=1e-5
    )
    self.assertLen(set(kept.targets.offset.tolist()), 3)

  def test_targets_of_classes_are_refused(self):
    data = self.data('landmine', standardize_targets='column')
    with self.assertRaisesRegex(ValueError, 'Expected a regression task'):
      federating.federate(datasets.load(data), data, 0)


class TasksTest(TableSourcesTestCase):
  def test_errors_in_units_and_deviations_are_for_regressions(self):
    source = self.load('exam', metrics=('rmse', 'nrmse'))
    names = [metric.name for metric in source.tasks[0].all_metrics]
    self.assertEqual(names, ['loss', 'mse', 'rmse', 'nrmse'])
    self.assertEqual(tasks_lib.metrics(source.tasks)['rmse'].label, 'RMSE')
    config = config_lib.default_config()
    config.report.metric = 'mse'
    checks.check_metrics(config, self.load('exam', metrics=('rmse',)).tasks)
    with self.assertRaisesRegex(
      ValueError, "column or task with the metric nrmse, .* got 'none'"
    ):
      checks.check_metrics(config, source.tasks)
    config.data.standardize_targets = 'column'
    checks.check_metrics(config, source.tasks)
    with self.assertRaisesRegex(ValueError, "'rmse' is for tasks with numbers"):
      self.load('landmine', metrics=('rmse',))


if __name__ == '__main__':
  absltest.main()

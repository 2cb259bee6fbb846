"""Laws of reports: a config says which tables there are besides the first."""

import pathlib
import sys
import tempfile

from absl.testing import absltest

from experiments.configuration import config as config_lib
from experiments.folders import records as records_lib
from experiments.reporting import reports

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.reporting import toy_records


def _records():
  settings = {'aggregation.common': 'examples', 'aggregation.task': 'examples'}
  values = {'separate_fl': (90.0, 92.0), 'multi_task_fl': (89.0, 90.5)}
  records = []
  for case, (first, last) in values.items():
    record = toy_records.record(case, [[[first] * 2], [[last] * 2]])
    balanced = [[[first - 30] * 2], [[last - 30] * 2]]
    record['curve']['values']['test/pooled/balanced_accuracy'] = balanced
    records.append(record | {'settings': settings})
  return records


def _tables(**report):
  config = config_lib.default_config()
  config.report.update(report)
  tables = reports.build_tables(_records(), config)
  return {table.title: table for table in tables}


class TablesTest(absltest.TestCase):
  def test_another_metric_has_a_table_of_its_own(self):
    title = 'Test balanced accuracy (%)'
    self.assertNotIn(title, [name.capitalize() for name in _tables()])
    found = _tables(more_metrics=('balanced_accuracy',))
    (table,) = [t for name, t in found.items() if name.capitalize() == title]
    cells = toy_records.cells(table, 'mean')
    self.assertStartsWith(cells['Separate_fl'], '62.00')

  def test_published_figures_of_tasks_that_are_not_there_are_left_out(self):
    published = (('Paper', 'mean', '9.75'), ('Paper', 'gender', '8.25'))
    (table, *_) = _tables(published=published).values()
    rows = {row[0]: row for row in table.published}
    self.assertEqual(rows['Paper'][table.header.index('mean')], '9.75')
    self.assertNotIn('8.25', rows['Paper'])

  def test_what_is_balanced_is_reported(self):
    first, second = _records()
    config = config_lib.default_config()
    for name, told in (('dwa', True), ('none', False)):
      second['settings'] = first['settings'] | {'balancing.client': name}
      (table, *_) = reports.build_tables([first, second], config)
      self.assertEqual('Balancing: client: dwa.' in table.notes, told)

  def test_codecs_are_noted_with_their_settings(self):
    settings = dict.fromkeys(
      ('aggregation.common', 'aggregation.task'), 'examples'
    ) | {'compression.common': 'eden', 'compression.bits': 2.0}
    record = toy_records.last('toy', 90.0, settings=settings)
    said = 'Updates are sent compressed: common eden (bits 2.0).'
    self.assertIn(said, reports.notes([record]))
    settings['compression.common'] = 'none'
    self.assertNotIn(said, reports.notes([record]))

  def test_weights_are_noted_with_cases_where_they_differ(self):
    records = [_records()[0] | {'label': label} for label in 'abcd']
    usual = 'common layers examples, task-specific layers examples'
    self.assertIn(f'Aggregation weights: {usual}.', reports.notes(records))
    settings = records[0]['settings'] | {'aggregation.common': 'paper'}
    for number in (0, 2):
      records[number]['settings'] = settings
    records.append(records[1])
    self.assertIn(
      f'Aggregation weights: {usual}; '
      'a, c: common layers paper, task-specific layers examples.',
      reports.notes(records),
    )

  def test_a_target_is_what_a_case_ends_with_less_a_margin(self):
    (title,) = set(_tables(target_case='separate_fl')) - set(_tables())
    table = _tables(target_case='separate_fl', target_margin=1.5)[title]
    self.assertEqual(
      toy_records.cells(table, 'rounds to 90.5 %'),
      {'Separate_fl': '5', 'Multi_task_fl': '5'},
    )
    table = _tables(target_case='separate_fl', target_margin=1.0)[title]
    self.assertEqual(
      toy_records.cells(table, 'rounds to 91 %')['Multi_task_fl'],
      'not reached',
    )

  def test_a_case_that_did_not_run_sets_no_target(self):
    self.assertEqual(set(_tables(target_case='fedavg')), set(_tables()))


class WriteTest(absltest.TestCase):
  def test_tables_wait_for_a_case_that_has_what_they_show(self):
    """A majority is a bound of accuracies alone, and finishes first."""
    config = config_lib.default_config()
    config.report.metric = 'auc'
    workdir = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))
    (workdir / 'cases').mkdir()
    write = lambda record: records_lib.write(
      workdir / 'cases' / f'{record["case"]}.json', record
    )
    write(toy_records.last('majority', 50.0, rounds=0))
    found = reports.write(workdir, config, missing=['multi_task_fl'])
    self.assertEqual({row['case'] for row in found['results']}, {'majority'})
    self.assertEqual(
      {path.name for path in workdir.iterdir()} - {'cases'},
      {'results.json', 'metrics.csv', 'tensorboard'},
    )
    losses = [[1.0]] * 10
    record = toy_records.last('separate_fl', 90.0, train_loss=losses)
    record['curve']['values']['test/pooled/auc'] = [[[75.0] * 2]]
    write(record)
    reports.write(workdir, config, missing=['multi_task_fl'])
    table = (workdir / 'results.md').read_text()
    self.assertRegex(table, r'Separate_fl \|.* 75\.00')
    self.assertIn('Not finished yet: Multi-task FL.', table)


if __name__ == '__main__':
  absltest.main()

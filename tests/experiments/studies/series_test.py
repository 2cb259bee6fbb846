"""Laws of series: every value is the run of a command with that value."""

import pathlib
import sys
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import numpy as np

from experiments.configuration import config as config_lib
from experiments.reporting import study_figures
from experiments.running import interrupts
from experiments.studies import case_runs
from experiments.studies import comparisons
from experiments.studies import histories
from experiments.studies import series
from experiments.studies import train

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test
from tests.experiments.studies import train_test

_FIELD = 'client.learning_rate'


def _config(fields=None):
  return program_test.toy_config(
    {'cases': ('majority', 'fedavg', 'isolated'), 'run.rounds': 2}
    | (fields or {})
  )


def _parse(over, config=None, given=(), variant=None):
  return series.parse(over, config or _config(), dict(given), variant)


class SeriesTest(program_test.ToyTestCase):
  """Nothing is trained: accuracies are a hundred times the learning rate."""

  def setUp(self):
    super().setUp()
    self.ran = []
    self.stop_at = None

    def run_case(label, case, config, *unused_args, **unused_settings):
      rate = config.client.learning_rate
      if rate == self.stop_at:
        raise interrupts.Interrupted(2)
      self.ran.append((label, rate))
      runs, tasks = len(case.runs.key), len(program_test.TASKS) + 1
      rates = case.runs.settings.get(_FIELD, np.full(runs, rate))
      values = [[[100.0 * float(x)] * tasks for x in rates]]
      names = [
        f'{split}/{view}/accuracy{suffix}'
        for split in ('test', 'validation')
        for view in ('pooled', 'client')
        for suffix in ('', '_worst_decile')
      ]
      return histories.History(
        {
          'rounds': [2],
          'values': dict.fromkeys(names, values),
          'client_values': {
            'test/accuracy': [[[50.0]] * program_test.CLIENTS] * runs
          },
          'train_loss': [[0.7] * runs] * 2,
          'totals': {'rounds': 2.0, 'clients': 2.0, 'slots': 2.0, 'steps': 2.0},
          'seconds': 1.0,
        }
      )

    self.enter_context(mock.patch.object(case_runs, 'run_case', run_case))
    self.workdir = train_test.new_folder(self)

  def test_a_column_is_the_run_with_that_value(self):
    found = series.run(_parse(f'{_FIELD}=0.1,0.5'), self.workdir)
    self.assertEqual(
      [run.name for run in found.runs],
      ['learning_rate=0.1', 'learning_rate=0.5'],
    )
    rows = {row[0]: row[1:] for row in found.tables[0].rows}
    self.assertEqual([cell[:5] for cell in rows['FedAvg']], ['10.00', '50.00'])
    self.assertNotEqual(rows['Majority class'][0], '–')
    # The same as by the command with that value, which trains nothing more.
    for rate in (0.1, 0.5):
      ran = list(self.ran)
      train.train_and_evaluate(
        _config({_FIELD: rate}),
        self.workdir / f'learning_rate={rate}',
        command_line={_FIELD: rate},
      )
      self.assertEqual(self.ran, ran)
    for name in ('gathered.md', 'gathered.csv', 'gathered.tex', 'series.png'):
      self.assertTrue((self.workdir / name).is_file(), name)

  def test_the_figure_has_the_means_and_deviations_of_the_cases(self):
    drawn = mock.create_autospec(study_figures.series)
    with mock.patch.object(study_figures, 'series', drawn):
      series.run(_parse(f'{_FIELD}=0.1,0.5'), self.workdir)
    drawn.assert_called_once()  # One value is no line.
    _, values, names = drawn.call_args.args
    self.assertEqual(names, ['0.1', '0.5'])
    np.testing.assert_allclose(values['FedAvg'][0], [10, 50], rtol=1e-6)
    np.testing.assert_allclose(values['FedAvg'][1], 0, atol=1e-6)

  def test_a_series_that_was_stopped_goes_on(self):
    runs = _parse(f'{_FIELD}=0.1,0.5')
    self.stop_at = 0.5
    with self.assertRaises(interrupts.Interrupted):
      series.run(runs, self.workdir)
    first = list(self.ran)
    # What is finished has its table.
    text = (self.workdir / 'gathered.md').read_text('utf-8')
    self.assertIn('learning_rate=0.1', text)
    self.stop_at = None
    series.run(runs, self.workdir, resume='must')
    self.assertEqual({rate for _, rate in first}, {0.1})
    self.assertEqual({rate for _, rate in self.ran[len(first) :]}, {0.5})
    # A further value runs itself alone.
    count = len(self.ran)
    found = series.run(_parse(f'{_FIELD}=0.1,0.25,0.5'), self.workdir)
    self.assertEqual({rate for _, rate in self.ran[count:]}, {0.25})
    self.assertLen(found.runs, 3)
    with self.assertRaisesRegex(ValueError, 'Expected no run in .*0.1 with'):
      series.run(runs, self.workdir, resume='never')

  def test_with_a_search_each_value_is_a_comparison(self):
    config = _config({'compare.learning_rates': (0.2, 0.4), 'compare.seeds': 1})
    found = series.run(
      _parse('client.momentum=0.0,0.5', config), self.workdir, search=True
    )
    rows = {row[0]: row[1:] for row in found.tables[0].rows}
    self.assertEqual([cell[:5] for cell in rows['FedAvg']], ['40.00', '40.00'])
    self.assertNotEqual(rows['Majority class'][0], '–')
    self.assertTrue(
      (self.workdir / 'momentum=0.5' / 'comparison.json').is_file()
    )
    count = len(self.ran)
    comparisons.run(
      _config(
        {
          'compare.learning_rates': (0.2, 0.4),
          'compare.seeds': 1,
          'client.momentum': 0.5,
        }
      ),
      self.workdir / 'momentum=0.5',
    )
    self.assertLen(self.ran, count)

  def test_variants_are_columns_without_a_figure(self):
    rates = {'slow': 0.1, 'fast': 0.5}
    runs = _parse(
      'variants=slow,fast',
      given={'run.seeds': 2},
      variant=lambda name: _config({_FIELD: rates[name]}),
    )
    found = series.run(runs, self.workdir, ('fedavg',))
    self.assertEqual([run.name for run in found.runs], ['slow', 'fast'])
    self.assertEqual(
      [len(run.records[0]['seeds']) for run in found.runs], [2, 2]
    )
    self.assertEqual({rate for _, rate in self.ran}, {0.1, 0.5})
    self.assertFalse((self.workdir / 'series.png').exists())

  def test_a_field_may_act_in_one_of_the_runs(self):
    given = {'compression.bits': 4.0}
    with self.assertRaisesRegex(ValueError, 'of eden or qsgd with compression'):
      series.run(
        _parse('client.learning_rate=0.1,0.2', given=given), self.workdir
      )
    self.assertFalse(self.workdir.exists())
    runs = _parse('compression.common=none,eden', given=given)
    found = series.run(runs, self.workdir)
    self.assertLen(found.runs, 2)

  def test_a_wrong_value_is_found_before_anything_is_written(self):
    for search in (False, True):
      with self.assertRaisesRegex(ValueError, 'client.momentum'):
        series.run(
          _parse('client.momentum=0.5,-1.0'), self.workdir, search=search
        )
    self.assertFalse(self.workdir.exists())
    self.assertEmpty(self.ran)
    with self.assertRaisesRegex(ValueError, 'Expected a series in '):
      series.run(_parse(f'{_FIELD}=0.1,0.5'), self.workdir, resume='must')
    with self.assertRaisesRegex(ValueError, 'to be one of auto, never, must'):
      series.run(_parse(f'{_FIELD}=0.1,0.5'), self.workdir, resume='perhaps')


class ParseTest(parameterized.TestCase):
  """What --over says."""

  @parameterized.parameters(
    ('privacy.epsilon=1,inf', [1.0, 0.0], ['epsilon=1', 'epsilon=inf']),
    ('run.rounds=5,10', [5, 10], ['rounds=5', 'rounds=10']),
    (
      'model.hidden=(8,),(8, 4)',
      [(8,), (8, 4)],
      ['hidden=(8,)', 'hidden=(8, 4)'],
    ),
    (
      'compression.common=none,eden:2',
      ['none', 'eden:2'],
      ['common=none', 'common=eden:2'],
    ),
  )
  def test_values_have_the_type_of_their_field(self, over, values, names):
    runs = _parse(over, given={'run.seeds': 3})
    field = over.partition('=')[0]
    for run, value, name in zip(runs, values, names, strict=True):
      self.assertEqual(run.name, name)
      self.assertEqual(run.command_line, {'run.seeds': 3, field: value})
      flat = config_lib.flatten(run.config)
      self.assertEqual(config_lib.tuples(flat[field]), value)
      self.assertEqual(flat['run.seeds'], 3)

  @parameterized.parameters(
    ('privacy.epsilon', 'to be FIELD=VALUE,VALUE or variants=A,B'),
    ('privacy.epsilon=1,,2', 'to be FIELD=VALUE,VALUE'),
    ('privacy.epsilon=1,1', "differ and to be names of folders, got '1'"),
    ('data.manual_dir=a/b', "names of folders, got 'a/b'"),
    ('privacy.epsilo=1', "Unknown config field 'privacy.epsilo'"),
    ('privacy.epsilon=small', 'privacy.epsilon'),
    ('run.rounds=1.5', 'run.rounds'),
    ('run.seeds=1,2', 'got --config.run.seeds as well; leave it out'),
  )
  def test_a_wrong_one_is_one_sentence(self, over, wanted):
    with self.assertRaisesRegex(ValueError, wanted):
      _parse(over, given={'run.seeds': 3})


if __name__ == '__main__':
  absltest.main()

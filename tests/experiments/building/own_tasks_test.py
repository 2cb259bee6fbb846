"""Law: metrics named in a config are those of the tasks that they fit."""

from absl.testing import absltest
import numpy as np

from experiments.building import checks
from experiments.building import fingerprints
from experiments.building import own_tasks
from experiments.building import sources
from experiments.configuration import config as config_lib
from experiments.reporting import results
from fmtl_jax import tasks as tasks_lib

TASKS = (
  tasks_lib.binary('two'),
  tasks_lib.multiclass('three', 3, column=1),
  tasks_lib.regression('value', column=2),
)


def _named(*names, tasks=TASKS):
  config = config_lib.default_config()
  config.data.metrics = names
  source = sources.Source(np.zeros((1, 2)), np.zeros((1, 3)), tasks, np.ones(1))
  return config, own_tasks.replaced(source, config.data)


class NamesTest(absltest.TestCase):
  def test_tasks_have_what_fits_them(self):
    _, source = _named('f1', 'brier', 'confusion', 'accuracy')
    two, three, value = ([m.name for m in t.metrics] for t in source.tasks)
    self.assertEqual(two[:2], ['f1', 'brier'])
    self.assertLen(two, 6)  # Accuracy is there already.
    self.assertEqual(three[0], 'brier')
    self.assertLen(three, 10)
    self.assertEmpty(value)
    shown = results.own_metrics(source.tasks)['metrics']
    self.assertTrue(shown['brier']['lower_is_better'])
    self.assertTrue(shown['confusion_2_1']['in_percent'])

  def test_a_metric_for_no_task_is_refused(self):
    with self.assertRaisesRegex(ValueError, "'f1' is for tasks with two cl"):
      _named('f1', tasks=TASKS[1:])

  def test_an_unknown_name_is_refused_before_data_are_read(self):
    config, _ = _named()
    config.data.metrics = ('f1', 'acuracy')
    with self.assertRaisesRegex(ValueError, "Did you mean 'accuracy'"):
      checks.check(config)
    config.data.metrics = ('f1', 'ece')
    checks.check(config)
    self.assertEqual(fingerprints.of_own_code(config), {})


if __name__ == '__main__':
  absltest.main()

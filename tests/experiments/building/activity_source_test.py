"""Human activity as a source: six activities, or one of them and the rest."""

from unittest import mock

from absl.testing import absltest
import numpy as np

from experiments.building import built_in_sources
from experiments.configuration import config as config_lib
from fmtl_jax import tasks as tasks_lib
from fmtl_jax.data import uci_har

_ACTIVITY = np.array([0, 3, 5, 3, 1, 3], np.int32)


def _load(kind):
  loaded = uci_har.HumanActivity(
    features=np.arange(12, dtype=np.float32).reshape(6, 2),
    activity=_ACTIVITY,
    subject=np.array([1, 1, 1, 4, 4, 4], np.int32),
    is_test=np.zeros(6, bool),
  )
  data = config_lib.default_config().data
  data.kind = kind
  with mock.patch.object(uci_har, 'load', return_value=loaded) as load:
    return built_in_sources.load_uci_har(data), load.call_args.args[2]


class ActivitySourceTest(absltest.TestCase):
  def test_one_activity_is_told_from_the_rest(self):
    source, kind = _load('sitting')
    self.assertEqual(kind, 'features')
    np.testing.assert_array_equal(source.labels[:, 0], _ACTIVITY == 3)
    self.assertEqual({task.kind for task in source.tasks}, {tasks_lib.BINARY})
    self.assertEqual([t.name for t in source.tasks], ['person 1', 'person 4'])
    # Splits are stratified by all activities, and runs are those.
    np.testing.assert_array_equal(source.strata, _ACTIVITY)
    np.testing.assert_array_equal(source.runs, _ACTIVITY)

  def test_all_of_them_are_the_default(self):
    for name in ('', 'features', 'signals'):
      source, kind = _load(name)
      self.assertEqual(kind, name or 'features')
      np.testing.assert_array_equal(source.labels[:, 0], _ACTIVITY)
      self.assertEqual({task.num_classes for task in source.tasks}, {6})

  def test_another_kind_is_reported(self):
    with self.assertRaisesRegex(
      ValueError, "data.kind to be one of features, .*laying, got 'video'"
    ):
      _load('video')


if __name__ == '__main__':
  absltest.main()

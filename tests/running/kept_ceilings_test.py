"""Laws of kept ceilings: what is kept counts, what is damaged does not."""

import json
import os
import tempfile
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax

from fmtl_jax import execution
from fmtl_jax.running import kept_ceilings

_FOLDER = tempfile.TemporaryDirectory()
FAST = execution.Ceilings(flops_per_second=3e12, bytes_per_second=2e11)


class KeptCeilingsTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    place = mock.patch.dict(
      os.environ, XDG_CACHE_HOME=tempfile.mkdtemp(dir=_FOLDER.name)
    )
    self.enter_context(place)

  def test_what_is_kept_is_found_by_the_next_process(self):
    self.assertIsNone(kept_ceilings.kept())
    file = kept_ceilings.keep(FAST)
    self.assertEqual(kept_ceilings.kept(), FAST)
    file.unlink()
    self.assertIsNone(kept_ceilings.kept())

  def test_another_device_has_others(self):
    kept_ceilings.keep(FAST)
    other = mock.Mock(platform='gpu', device_kind='NVIDIA H200 / 3')
    with mock.patch.object(jax, 'local_devices', return_value=[other]):
      self.assertIsNone(kept_ceilings.kept())
      self.assertEndsWith(kept_ceilings.path().name, '-gpu-NVIDIA_H200_3.json')

  def test_processes_that_run_together_choose_the_same(self):
    kept_ceilings.keep(FAST)
    with mock.patch.object(jax, 'process_count', return_value=2):
      self.assertIsNone(kept_ceilings.kept())

  @parameterized.parameters(
    '{',
    '[1, 2]',
    json.dumps({'flops_per_second': 1.0}),
    json.dumps(FAST._asdict() | {'bytes_per_second': 0}),
    json.dumps(FAST._asdict() | {'bytes_per_second': 'fast'}),
  )
  def test_a_damaged_file_does_not_count_and_says_so(self, text):
    kept_ceilings.keep(FAST).write_text(text, encoding='utf-8')
    with self.assertWarnsRegex(UserWarning, 'cannot be read .*measure them'):
      self.assertIsNone(kept_ceilings.kept())


if __name__ == '__main__':
  absltest.main()

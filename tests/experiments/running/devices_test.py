"""Law: a checkpoint written on some devices is resumed on any others."""

import pathlib
import sys
import tempfile
from typing import Any
from unittest import mock

from absl.testing import absltest
from absl.testing import parameterized
import jax
import numpy as np

from experiments.studies import case_runs
from experiments.studies import train
from fmtl_jax import testing
from fmtl_jax.running import program
from fmtl_jax.storage import checkpoints

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))
from tests.experiments.running import program_test

DEVICES = (1, 2, 8)
# Personal layers, optimizers of clients and of servers are all state.
FIELDS = {
  'algorithm.name': 'fedper',
  'algorithm.initialization': 'per_owner',
  'client.batch_size': 4,
  'client.keep_optimizer_state': True,
  'client.momentum': 0.5,
  'cohort.clients_per_task': 2,
  'run.seeds': 2,
  'server.common.momentum': 0.5,
}


class DevicesTest(program_test.ToyTestCase):
  """Programs of one case on 1, 2 and 8 devices, and what they have saved."""

  programs: dict[int, program.Program]
  starts: dict[int, Any]
  about: dict[str, Any]
  folder: pathlib.Path

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    testing.need_devices(max(DEVICES))
    cls.folder = pathlib.Path(
      cls.enterClassContext(tempfile.TemporaryDirectory())
    )
    config, case = train.build_case(
      'fedper',
      program_test.toy_config(FIELDS),
      {},
      program_test.toy_source(),
    )
    cls.about = case_runs.about(case, config)
    cls.programs, cls.starts = {}, {}
    for number in DEVICES:
      devices = jax.devices()[:number]
      with mock.patch.object(jax, 'local_devices', return_value=devices):
        compiled = program.Program(case, 2, 'low')
      cls.programs[number] = compiled
      cls.starts[number] = compiled.host_state(compiled.init())
      state, _ = compiled.run_rounds(compiled.init(), 2)
      saved = cls.open(number)
      saved.save(2, compiled.host_state(state), {})
      saved.close()

  @classmethod
  def open(cls, number):
    return checkpoints.Checkpoints(cls.folder / f'{number}', about=cls.about)

  def next_round(self, writer, reader):
    """Saved state, state and metrics after one more round, on the host."""
    compiled, saved = self.programs[reader], self.open(writer)
    host, _ = saved.restore(self.starts[reader])
    saved.close()
    state, metrics = compiled.run_rounds(compiled.device_state(host), 1)
    return host, compiled.host_state(state), metrics

  @parameterized.product(writer=DEVICES, reader=DEVICES)
  def test_the_next_round_is_the_same_to_rounding(self, writer, reader):
    expected = self.next_round(1, 1)
    testing.assert_trees_close(self.next_round(writer, reader), expected)

  def test_devices_are_used_and_everything_is_state(self):
    for number, compiled in self.programs.items():
      self.assertEqual(compiled._mesh.size, number)
    before, after, _ = self.next_round(1, 1)
    for part in ('params', 'server', 'clients'):
      old, new = (
        jax.tree.leaves(getattr(state, part)) for state in (before, after)
      )
      self.assertTrue(all(np.any(leaf) for leaf in old), part)
      pairs = zip(old, new, strict=True)
      self.assertTrue(all(np.any(x != y) for x, y in pairs), part)


if __name__ == '__main__':
  absltest.main()

"""Laws of checkpoints: what was saved comes back, and nothing is replaced."""

import errno
import json
import pathlib
import shutil
import tempfile
from unittest import mock
import warnings

from absl.testing import absltest
from absl.testing import parameterized
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fmtl_jax import testing
from fmtl_jax.algorithms import multi_task_fl
from fmtl_jax.clients import local_optimizers
from fmtl_jax.federation import layer_types
from fmtl_jax.rounds import round_settings
from fmtl_jax.server import server_optimizers
from fmtl_jax.storage import checkpoints

C, T, P = layer_types.COMMON, layer_types.TASK, layer_types.PERSONAL


def _momentum(rate):
  return optax.sgd(rate, momentum=0.9)


class _TestCase(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.folder = pathlib.Path(folder) / 'run'

  def _open(self, keep: int | None = 1, name: str = '.'):
    opened = checkpoints.Checkpoints(self.folder / name, keep)
    self.addCleanup(opened.close)
    return opened

  def _save(self, *args, **kwargs):
    opened = checkpoints.Checkpoints(self.folder)
    opened.save(*args, **kwargs)
    opened.close()

  def _assert_one_sentence(self, error, *parts):
    sentence = str(error)
    self.assertNotIn('\n', sentence)
    self.assertEndsWith(sentence, '.')
    for part in parts:
      self.assertIn(part, sentence)


class ResumeTest(_TestCase):
  def test_resuming_equals_not_stopping_bit_for_bit(self):
    """Momentum at server and clients, personal layers and donated states."""
    data = testing.toy_data(5, 3, 2, missing=0.3)
    federation, _ = testing.toy_federation([C, T, P], data)
    algorithm = multi_task_fl.multi_task_fl(
      federation,
      local_optimizers.LocalSgd(
        optimizer=_momentum,
        learning_rate=optax.linear_schedule(0.2, 0.05, 5),
        batch_size=2,
        keep_optimizer_state=True,
      ),
      round_settings.RoundSettings(
        clients_per_task=1,
        server={
          C: server_optimizers.ServerOptimizer(_momentum, 0.7),
          T: server_optimizers.ServerOptimizer(optax.adam, 0.1),
        },
      ),
    )
    init = testing.jit(algorithm.init)
    round_fn = testing.jit(algorithm.round, donate_argnums=0)

    opened = self._open(keep=None)
    state = init(jax.random.key(1), data)
    for number in range(1, 6):
      state, _ = round_fn(state, data)
      opened.save(number, state, {'number': number})
    opened.wait()

    for stop in 2, 4:
      resumed, metadata = self._open().restore(
        init(jax.random.key(2), data), stop
      )
      self.assertEqual(metadata, {'number': stop})
      self.assertEqual(int(resumed.round), stop)
      for _ in range(stop, 5):
        resumed, _ = round_fn(resumed, data)
      testing.assert_trees_equal(resumed, state)
    # The rounds do something to everything that was kept.
    before, _ = self._open().restore(state, 2)
    for path, leaf in jax.tree.leaves_with_path(
      (before.params, before.server, before.clients)
    ):
      self.assertTrue(np.any(leaf), jax.tree_util.keystr(path))
    changed = jax.tree.map(
      lambda x, y: np.any(x != y), before.params, state.params
    )
    self.assertTrue(all(jax.tree.leaves(changed)))


class CheckpointsTest(_TestCase):
  def setUp(self):
    super().setUp()
    self.state = {
      'params': {'kernel': jnp.arange(6.0).reshape(2, 3), 'hole': None},
      'half': jnp.linspace(0, 1, 3, dtype=jnp.bfloat16),
      'clients': (),
      'key': jax.random.split(jax.random.key(3), 2),
      'round': jnp.int32(7),
    }
    self.other = jax.tree.map(
      lambda x: x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else 0 * x,
      self.state,
    ) | {'key': jax.random.split(jax.random.key(4), 2)}

  def test_everything_comes_back(self):
    metadata = {'layers': ['a', 'b'], 'seed': 3, 'rate': 0.1, 'none': None}
    self._save(7, self.state, metadata)
    restored, kept = self._open().restore(self.other)
    testing.assert_trees_equal(restored, self.state)
    self.assertEqual(kept, metadata)
    np.testing.assert_array_equal(
      jax.random.uniform(restored['key'][1]),
      jax.random.uniform(self.state['key'][1]),
    )

  def test_what_is_changed_after_a_save_is_not_saved(self):
    state = {'leaf': np.zeros(5)}
    metadata = {'history': {'loss': [0.5] * 1000, 'totals': {'steps': 1.0}}}
    opened = self._open()
    opened.save(3, state, metadata)
    state['leaf'][:] = 1
    metadata['history']['loss'].append(0.25)
    metadata['history']['totals']['steps'] = 2.0
    restored, kept = opened.restore({'leaf': np.ones(5)})
    np.testing.assert_array_equal(restored['leaf'], np.zeros(5))
    self.assertEqual(
      kept, {'history': {'loss': [0.5] * 1000, 'totals': {'steps': 1.0}}}
    )

  def test_an_array_on_many_devices_comes_back(self):
    mesh = jax.make_mesh((jax.device_count(),), ('client',))
    sharding = jax.sharding.NamedSharding(mesh, jax.P('client'))
    values = np.arange(2 * jax.device_count(), dtype=np.float32)
    state = {'leaf': jax.device_put(values, sharding)}
    self._save(1, state, {})
    restored, _ = self._open().restore({'leaf': np.zeros_like(values)})
    np.testing.assert_array_equal(restored['leaf'], values)

  def test_the_latest_is_kept(self):
    opened = self._open()
    self.assertIsNone(opened.latest)
    for number in 5, 10, 15:
      opened.save(number, {'leaf': jnp.array(number)}, {'n': number})
    opened.wait()
    self.assertEqual(opened.latest, 15)
    restored = self._open().restore({'leaf': jnp.array(0)})
    self.assertEqual((int(restored[0]['leaf']), restored[1]), (15, {'n': 15}))
    with self.assertRaisesRegex(ValueError, 'The checkpoint of round 5 in'):
      opened.restore({'leaf': jnp.array(0)}, 5)

  @parameterized.parameters((2, [10, 15]), (None, [5, 10, 15]))
  def test_more_may_be_kept(self, keep, expected):
    opened = self._open(keep)
    for number in 5, 10, 15:
      opened.save(number, {'leaf': jnp.array(number)}, {})
    opened.wait()
    for number in expected:
      restored, _ = opened.restore({'leaf': jnp.array(0)}, number)
      self.assertEqual(int(restored['leaf']), number)
    self.assertCountEqual(
      [int(path.name) for path in self.folder.iterdir()], expected
    )

  def test_a_round_is_not_replaced(self):
    opened = self._open()
    opened.save(7, self.state, {'run': 1})
    opened.save(7, self.other, {'run': 2})
    restored, metadata = opened.restore(self.other)
    testing.assert_trees_equal(restored, self.state)
    self.assertEqual(metadata, {'run': 1})

  def test_no_checkpoint_is_an_error(self):
    with self.assertRaises(ValueError) as caught:
      self._open().restore(self.state)
    self._assert_one_sentence(
      caught.exception,
      f'No checkpoint in {self.folder}',
      'save one there first',
    )

  @parameterized.named_parameters(
    (
      'shape',
      {'half': jnp.zeros(4)},
      "half ('bfloat16[3]' there, 'float32[4]' now)",
    ),
    ('leaf_too_many', {'more': jnp.zeros(2)}, ''),
    ('other_network', {'params': {'weights': jnp.zeros((2, 3))}}, ''),
  )
  def test_a_checkpoint_of_another_federation_is_an_error(self, changes, part):
    opened = self._open()
    opened.save(7, self.state, {})
    with self.assertRaises(ValueError) as caught:
      opened.restore(self.state | changes)
    self._assert_one_sentence(
      caught.exception,
      f'The checkpoint of round 7 in {self.folder} does not fit this',
      part,
      'use another workdir, or the config it was made with.',
    )
    # It is as it was for those whom it fits.
    restored, _ = opened.restore(self.other)
    testing.assert_trees_equal(restored, self.state)

  def test_a_leaf_too_few_is_an_error(self):
    opened = self._open()
    opened.save(7, self.state, {})
    fewer = {name: leaf for name, leaf in self.state.items() if name != 'half'}
    with self.assertRaisesRegex(ValueError, 'does not fit this federation'):
      opened.restore(fewer)

  def test_another_number_of_clients_is_an_error(self):
    algorithms = [
      multi_task_fl.multi_task_fl(
        testing.toy_federation([C, P], testing.toy_data(size, 2))[0]
      )
      for size in (4, 5)
    ]
    states = [
      jax.tree.map(
        lambda x: (
          x
          if jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
          else np.zeros(x.shape, x.dtype)
        ),
        testing.jit(algorithm.init)(
          jax.random.key(0), testing.toy_data(size, 2)
        ),
      )
      for algorithm, size in zip(algorithms, (4, 5), strict=True)
    ]
    opened = self._open()
    opened.save(3, states[0], {})
    with self.assertRaisesRegex(
      ValueError,
      r"params/layer_1/bias \('float32\[4, 1, 3\]' there, 'float32\[5, 1, 3\]'",
    ):
      opened.restore(states[1])


class KeptTest(_TestCase):
  def _rounds(self, scores, keep=1):
    """Saves a checkpoint for each score; those that are left."""
    opened = self._open(keep)
    for number, score in scores.items():
      opened.save(number, {'leaf': jnp.array(number)}, {}, score)
      opened.wait()  # As if each were saved by a process of its own.
      opened = self._open(keep)
    return opened.rounds

  def test_the_latest_and_the_best_are_kept(self):
    scores = {1: 0.5, 2: 0.9, 3: None, 4: 0.7, 5: 0.8}
    self.assertEqual(self._rounds(scores), [2, 5])

  def test_a_score_that_is_not_finite_is_never_the_best(self):
    scores = {1: 0.5, 2: np.nan, 3: np.inf, 4: -np.inf, 5: 0.1}
    self.assertEqual(self._rounds(scores), [1, 5])

  def test_two_of_the_latest_and_the_best_are_kept(self):
    self.assertEqual(self._rounds({1: -3.0, 2: -4.0, 3: -5.0}, 2), [1, 2, 3])

  def test_one_that_is_being_removed_is_no_checkpoint(self):
    self._rounds({1: None, 2: None}, keep=2)
    opened = self._open()
    with (
      mock.patch.object(shutil, 'rmtree', side_effect=KeyboardInterrupt),
      self.assertRaises(KeyboardInterrupt),
    ):
      opened.wait()
    for path in (self.folder / '.deleted').rglob('metadata'):
      if path.is_file():
        path.unlink()
    self.assertEqual(self._open().rounds, [2])
    self.assertEqual([path.name for path in self.folder.iterdir()], ['2'])

  def test_what_it_says_nothing_of_is_the_default(self):
    state = {'leaf': jnp.array(1)}
    opened = checkpoints.Checkpoints(self.folder, about={'rate': 0.1})
    opened.save(3, state, {})
    opened.close()
    about = {'rate': 0.1, 'decay': 0.5}
    for defaults, fits in (({'decay': 0.5}, True), ({'decay': 1.0}, False)):
      again = checkpoints.Checkpoints(
        self.folder, about=about, defaults=defaults | {'rate': 0.2}
      )
      if fits:
        testing.assert_trees_equal(again.restore(state)[0], state)
      else:
        with self.assertRaisesRegex(ValueError, 'decay .1.0 there, 0.5 now'):
          again.restore(state)
      again.close()

  def test_what_it_is_about_is_checked(self):
    about = {'the layer type of a': 'common', 'client.learning_rate': 0.1}
    opened = checkpoints.Checkpoints(self.folder, about=about)
    opened.save(3, {'leaf': jnp.array(1)}, {})
    opened.close()
    other = checkpoints.Checkpoints(
      self.folder, about=about | {'the layer type of a': 'task'}
    )
    self.addCleanup(other.close)
    with self.assertRaises(ValueError) as caught:
      other.restore_latest({'leaf': jnp.array(0)})
    self._assert_one_sentence(
      caught.exception,
      "it differs in the layer type of a ('common' there, 'task' now)",
    )


class DamageTest(_TestCase):
  STATE = {'leaf': np.arange(5.0), 'key': jax.random.key(3)}

  def _saved(self):
    opened = self._open(keep=2)
    for number in 4, 6:
      opened.save(number, self.STATE | {'leaf': np.full(5, 1.0 * number)}, {})
    opened.close()

  def _files(self, number):
    return [p for p in (self.folder / f'{number}').rglob('*') if p.is_file()]

  @parameterized.parameters('empty', 'short', 'random', 'gone')
  def test_the_one_before_a_damaged_one_is_taken_and_told(self, damage):
    rng = np.random.default_rng(0)
    self._saved()
    for path in self._files(6):
      content = path.read_bytes()
      if damage == 'gone':
        path.unlink()
      elif damage == 'random':
        path.write_bytes(rng.bytes(len(content)))
      else:
        path.write_bytes(content[: len(content) // 2 * (damage == 'short')])
    opened = self._open(keep=2)
    state, _, number, told = opened.restore_latest(self.STATE)
    np.testing.assert_array_equal(state['leaf'], np.full(5, 4))
    self.assertEqual(number, 4)
    self.assertLen(told, 1)
    self._assert_one_sentence(told[0], 'of round 6 in', 'cannot be read (')
    # The round can be saved again.
    opened.save(6, self.STATE, {})
    opened.wait()
    self.assertEqual(opened.rounds, [4, 6])

  @parameterized.parameters(range(6))
  def test_random_bytes_in_one_file_give_a_sentence_or_the_state(self, seed):
    rng = np.random.default_rng(seed)
    self._saved()
    files = sorted(self._files(6))
    path = files[int(rng.integers(len(files)))]
    path.write_bytes(rng.bytes(int(rng.integers(1, 400))))
    state, _, number, told = self._open().restore_latest(self.STATE)
    self.assertEqual(number, 4 if told else 6)
    self.assertTrue((state['leaf'] == number).all())

  def test_nothing_readable_is_an_error_and_removes_nothing(self):
    self._saved()
    for number in 4, 6:
      for path in self._files(number):
        path.write_bytes(b'')
    with self.assertRaisesRegex(checkpoints.DamagedError, 'of round 6 in'):
      self._open().restore_latest(self.STATE)
    self.assertTrue((self.folder / '6').is_dir())

  @parameterized.parameters('save', 'wait_until_finished')
  def test_a_full_disk_is_told_and_keeps_the_one_before(self, when):
    self._saved()
    opened = self._open(keep=2)
    error = OSError(errno.ENOSPC, 'No space left on device')
    with (
      mock.patch.object(opened._manager, when, side_effect=error),
      self.assertRaises(OSError) as caught,
    ):
      opened.save(8, self.STATE, {})
      opened.wait()
    self._assert_one_sentence(
      caught.exception, 'No space left on device', 'that of round 6 is kept'
    )


class ParamsTest(_TestCase):
  PARAMS = {
    'dense_0': {'kernel': np.ones((2, 3), np.float32), 'bias': np.zeros(3)},
    'blocks': {'0': {'scale': jnp.arange(4, dtype=jnp.bfloat16)}},
  }

  def test_parameters_come_back_as_plain_dicts(self):
    metadata = {'name': 'face network', 'accuracy': [0.5, 1.0]}
    checkpoints.save_params(self.folder, self.PARAMS, metadata)
    params, kept = checkpoints.load_params(str(self.folder))
    testing.assert_trees_equal(params, self.PARAMS)
    self.assertEqual(kept, metadata)
    self.assertIs(type(params), dict)
    self.assertIs(type(params['blocks']['0']), dict)
    for leaf in jax.tree.leaves(params):
      self.assertIsInstance(leaf, np.ndarray)

  def test_metadata_may_be_left_out(self):
    checkpoints.save_params(self.folder, self.PARAMS)
    self.assertEqual(checkpoints.load_params(self.folder)[1], {})

  def test_nothing_is_replaced(self):
    checkpoints.save_params(self.folder, self.PARAMS, {'run': 1})
    other = jax.tree.map(lambda leaf: leaf + 1, self.PARAMS)
    with self.assertRaises(ValueError) as caught:
      checkpoints.save_params(self.folder, other)
    self._assert_one_sentence(caught.exception, f'{self.folder} exists')
    params, metadata = checkpoints.load_params(self.folder)
    testing.assert_trees_equal(params, self.PARAMS)
    self.assertEqual(metadata, {'run': 1})

  def test_a_stop_between_parameters_and_metadata_leaves_nothing(self):
    write = pathlib.Path.write_text

    def stopped(path, *args, **kwargs):
      if path.name == 'model.json':
        raise KeyboardInterrupt
      return write(path, *args, **kwargs)

    with (
      mock.patch.object(pathlib.Path, 'write_text', stopped),
      self.assertRaises(KeyboardInterrupt),
    ):
      checkpoints.save_params(self.folder, self.PARAMS)
    self.assertEmpty(list(self.folder.parent.iterdir()))
    checkpoints.save_params(self.folder, self.PARAMS)
    testing.assert_trees_equal(
      checkpoints.load_params(self.folder)[0], self.PARAMS
    )

  def test_a_flipped_bit_changes_nothing_or_is_told(self):
    metadata = {'name': 'face network', 'accuracy': [0.5, 1.0]}
    checkpoints.save_params(self.folder, self.PARAMS, metadata)
    rng = np.random.default_rng(0)
    files = sorted(p for p in self.folder.rglob('*') if p.is_file())
    told = 0
    for path in files * 3:
      good = path.read_bytes()
      bad = bytearray(good)
      bad[rng.integers(len(bad))] ^= 1 << rng.integers(7)
      path.write_bytes(bytes(bad))
      with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter('always')
        try:
          params, kept = checkpoints.load_params(self.folder)
        except ValueError as error:
          self._assert_one_sentence(error, 'cannot be read (', 'save it again')
          told += 1
        else:
          testing.assert_trees_equal(params, self.PARAMS)
          if not noted:  # The name of the digest may be what was changed.
            self.assertEqual(kept, metadata)
      path.write_bytes(good)
    self.assertGreater(told, 3)

  def test_another_model_beside_the_metadata_is_told(self):
    other = self.folder.with_name('other')
    checkpoints.save_params(self.folder, self.PARAMS)
    checkpoints.save_params(
      other, jax.tree.map(lambda leaf: leaf + 1, self.PARAMS)
    )
    shutil.copy(self.folder / 'model.json', other / 'model.json')
    with self.assertRaisesRegex(ValueError, 'it is not the one that was saved'):
      checkpoints.load_params(other)

  def test_one_of_version_0_is_read_and_told(self):
    metadata = {'task': {'name': 'odd'}}
    checkpoints.save_params(self.folder, self.PARAMS, metadata)
    (self.folder / 'model.json').write_text(json.dumps(metadata))
    with self.assertWarnsRegex(UserWarning, 'no digest, as those of version 0'):
      params, kept = checkpoints.load_params(self.folder)
    testing.assert_trees_equal(params, self.PARAMS)
    self.assertEqual(kept, metadata)

  def test_the_name_of_the_digest_is_taken(self):
    with self.assertRaisesRegex(ValueError, "without the name 'digest'"):
      checkpoints.save_params(self.folder, self.PARAMS, {'digest': 1})

  def test_an_empty_folder_is_not_replaced_either(self):
    self.folder.mkdir()
    with self.assertRaisesRegex(ValueError, 'exists; name a folder that does'):
      checkpoints.save_params(self.folder, self.PARAMS)
    self.assertEmpty(list(self.folder.iterdir()))

  @parameterized.parameters(True, False)
  def test_a_folder_without_a_model_is_an_error(self, exists):
    if exists:
      self.folder.mkdir()
    with self.assertRaises(ValueError) as caught:
      checkpoints.load_params(self.folder)
    self._assert_one_sentence(
      caught.exception, f'No saved model in {self.folder}'
    )


if __name__ == '__main__':
  absltest.main()

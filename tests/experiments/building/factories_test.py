"""Laws of factories: algorithms are built as the config says."""

from unittest import mock

from absl.testing import absltest
import jax

from experiments.building import checks
from experiments.building import factories
from experiments.configuration import config as config_lib
from experiments.reporting import costs
from fmtl_jax import execution
from fmtl_jax import secure_aggregation
from fmtl_jax import testing
from fmtl_jax.rounds import communication
from fmtl_jax.running import kept_ceilings


class CompressionTest(absltest.TestCase):
  def test_messages_are_encoded_by_layer_type(self):
    """Layers of 3 x 64 + 64 and 64 x 5 + 5 values."""
    federation, data = testing.toy_federation(width=64)
    found = []
    for codecs in ({}, {'common': 'top_k', 'task': 'sign'}):
      config = config_lib.default_config()
      config.compression.update(codecs, share=0.1)
      make = factories.make_algorithm(config, 'multi_task_fl')
      algorithm = make(federation, {})
      messages = algorithm.messages()
      once, each = communication.message_bytes(federation, messages.up)
      found.append(
        (once['common'], each['task'], costs.codecs(config_lib.flatten(config)))
      )
    self.assertEqual(
      found,
      [
        (256 * 4, 325 * 4, ''),
        (26 * 8, 11 * 4 + 2 * 4, 'common top_k (share 0.1), task sign'),
      ],
    )
    self.assertEqual(data.num_slots, 1)


class PlacementTest(absltest.TestCase):
  def _on_cpu(self):
    self.enter_context(
      mock.patch.object(jax, 'default_backend', return_value='cpu')
    )

  def test_without_a_number_kernels_are_factored_as_on_the_platform(self):
    """Kernels of 1 MiB stay in a cache; two rows are `4 / width` of them."""
    found = []
    self._on_cpu()
    for width, below in ((512, 0.0), (520, 0.0), (512, 0.001), (512, 0.25)):
      data = testing.toy_data(5, 1, num_features=width, sizes=(2, 2))
      federation, _ = testing.toy_federation(
        ('common', 'personal'), data, width=width
      )
      config = config_lib.default_config()
      config.client.batch_size = 2
      config.execution.low_rank_below = below
      make = factories.make_algorithm(config, 'multi_task_fl')
      _, reasons = make(federation, {}).form(data)
      found.append(reasons['layer_0/kernel'].split(':')[0])
    self.assertEqual(
      found, ['not factored', 'factored', 'not factored', 'factored']
    )

  def test_ceilings_that_were_kept_decide(self):
    """Where operations are dear, small products with rows are, too."""
    data = testing.toy_data(5, 1, num_features=520, sizes=(2, 2))
    federation, _ = testing.toy_federation(
      ('common', 'personal'), data, width=520
    )
    config = config_lib.default_config()
    config.client.batch_size = 2
    found = []
    self._on_cpu()
    for flops in (1e11, 1e8):
      kept = execution.Ceilings(flops, 1e10)
      with mock.patch.object(kept_ceilings, 'kept', return_value=kept):
        algorithm = factories.make_algorithm(config, 'multi_task_fl')(
          federation, {}
        )
      found.append(algorithm.form(data)[0].split(':')[0])
    self.assertEqual(found, ['low_rank', 'scan'])


class SecureSumsTest(absltest.TestCase):
  def test_fields_are_those_of_the_settings(self):
    federation, _ = testing.toy_federation(width=64)
    config = config_lib.default_config()
    self.assertIsNone(checks.secure_sums(config))
    self.assertEqual(costs.secure_sums(config_lib.flatten(config)), '')
    config.secure.aggregation = True
    self.assertEqual(
      checks.secure_sums(config), secure_aggregation.SecureSums()
    )
    make = factories.make_algorithm(config, 'multi_task_fl')
    with self.assertRaisesRegex(ValueError, 'at least 3 clients in the cohort'):
      make(federation, {})  # Tasks of two clients.
    config.secure.threshold = 0.75
    config.secure.bits = 8
    self.assertIn('8 bits', costs.secure_sums(config_lib.flatten(config)))
    config.secure.clip = 7.0
    for unit, noise, said in (
      ('none', 'central', 'norms of at most 7, weights of at most 1000'),
      ('client', 'central', 'norms as private clients have clipped them'),
      ('client', 'local', 'norms, with noise, of at most 7'),
    ):
      config.privacy.unit, config.privacy.noise = unit, noise
      found = costs.secure_sums(config_lib.flatten(config))
      self.assertIn(said, found)
    config.privacy.unit = 'none'
    self.assertEqual(checks.secure_sums(config).threshold, 0.75)


if __name__ == '__main__':
  absltest.main()

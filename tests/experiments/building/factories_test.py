"""Laws of factories: algorithms are built as the config says."""

from absl.testing import absltest

from experiments.building import factories
from experiments.configuration import config as config_lib
from experiments.reporting import costs
from fmtl_jax import testing
from fmtl_jax.rounds import communication


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


if __name__ == '__main__':
  absltest.main()

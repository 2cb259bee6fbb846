"""Phones and watches: activities of people whose devices lack a sensor.

Source: Anguita et al. (2013), https://archive.ics.uci.edu/dataset/240, CC BY
4.0: six activities of thirty people with a phone at the waist. The 348 features
of its accelerometer and the 211 of its gyroscope are two modalities (two angles
between both are left out). A phone has both, a watch one of them: a person in
three each, drawn. Thirty people are thirty tasks, each with a quarter of its
windows (some 85) for training, other ones for each seed.

Command: python -m experiments.main --config=configs/phones.py \
    --config.data.manual_dir=DIR
where DIR holds the zip of UCI data set 240. Variants: attention, zeros,
accelerometer, complete, smoke; they combine. docs/phones.md has the numbers.
"""

from fmtl_jax.experiments import config as config_lib

_ACCELEROMETER = ('accelerometer', r'[tf].*Acc.*|angle\((?!tBodyGyro).*')
_GYROSCOPE = ('gyroscope', '[tf].*Gyro.*')


def attention(config):
  """Embeddings are fused by attention instead of their mean."""
  config.model.fusion = 'attention'


def zeros(config):
  """One network of all features, zeros for those that a device lacks.

  They are raw, from -1 to 1: standardized, zeros would be far from all others.
  """
  config.data.standardize = False
  config.model.name = 'mlp'
  config.model.hidden = (128, 32, 32)


def accelerometer(config):
  """Everybody has an accelerometer, and it is all that is used."""
  config.data.modalities = (_ACCELEROMETER,)
  config.data.client_modalities = ()


def complete(config):
  """Everybody has a phone."""
  config.data.client_modalities = ()


def smoke(config):
  """A few rounds of small encoders."""
  config.cases = ('distributed_separate', 'multi_task_fl')
  config.model.encoder = (8,)
  config.model.hidden = (8,)
  config.run.rounds = 4
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.execution.compile_effort = 'low'
  config.report.figure_formats = ()


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'phones'
  config.cases = ('distributed_separate', 'fedavg', 'multi_task_fl')
  config.data.name = 'uci_har'
  config.data.partition = 'key'
  config.data.protocol = 'random'
  config.data.test_fraction = 0.75
  config.data.validation_fraction = 0.0
  config.data.standardize = True
  config.data.modalities = (_ACCELEROMETER, _GYROSCOPE)
  config.data.client_modalities = (
    ('accelerometer', 'gyroscope'),
    ('accelerometer',),
    ('gyroscope',),
  )
  config.model.name = 'multi_modal'
  config.model.encoder = (64, 32)
  config.model.hidden = (32,)
  config.algorithm.task_layers = 2
  config.client.learning_rate = 0.05
  config.client.momentum = 0.9
  config.client.batch_size = 16
  config.client.local_epochs = 2
  config.run.rounds = 40
  config.run.seeds = 5
  config.run.evaluate_every = 10
  config.report.view = 'client'
  config.report.curve_case = ''
  config.report.title = 'Activity on phones and watches: test accuracy (%)'
  return config_lib.apply_variants(
    config,
    variants,
    {
      'attention': attention,
      'zeros': zeros,
      'accelerometer': accelerometer,
      'complete': complete,
      'smoke': smoke,
    },
  )

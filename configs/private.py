"""Privacy of examples inside silos: people, hospitals, parts of digits.

Sources: Liu, Hu, Wu, Smith (2022), https://arxiv.org/abs/2206.07902, for the
question: where every silo protects its own examples, is it better to train
alone, together, or near the mean of all (MR-MTL)? The data are those of
configs/har.py, relations.py and digits.py.

Command: python -m experiments.main --config=configs/private.py:har \
    --config.data.manual_dir=DIR --config.privacy.epsilon=3
Epsilon 0 clips without noise: infinity. Epsilons 1, 3, 6, infinity in one
command, with four learning rates for every case and epsilon:
    python -m experiments.series --config=configs/private.py:hearts \
    --config.data.manual_dir=DIR --over=privacy.epsilon=1,3,6,inf --search
Variants: har, blocked, hearts, digits, faces, grid, smoke; they combine.
"""

import ml_collections

from configs import har as har_lib
from fmtl_jax.experiments import config as config_lib

# These need a layer in front of the last one.
_OVERRIDES = {
  'fedper': {'model': {'hidden': (8,)}},
  'multi_task_fl': {
    'model': {'hidden': (8,)},
    'algorithm': {'personal_layers': 0},
  },
  # The best of five at epsilon 3 on validation data of digits and hearts.
  'mr_mtl': {'algorithm': {'mr_mtl': {'lam': 0.03}}},
}
_CASES = ('majority', 'isolated', 'fedavg', 'fedper', 'multi_task_fl', 'mr_mtl')


def har(config):
  """Thirty people are silos: linear models, whose noise is of few values."""
  har_lib.people(config)
  config.data.standardize = False  # Features are between -1 and 1.
  config.model.hidden = ()
  config.client.batch_size = 64
  config.client.local_epochs = 1
  config.run.rounds = 15
  config.execution.compile_effort = 'high'  # Gradients of 561 columns.
  config.compare.seeds = 1
  config.report.title = 'UCI HAR, private examples: test accuracy (%)'


def blocked(config):
  """Test windows of people come later in time: none overlaps a training one."""
  har(config)
  config.data.protocol = 'blocked'


def hearts(config):
  """Four hospitals: who is ill. Means and deviations are taken as public."""
  config.data.name = 'heart_disease'
  config.data.kind = ''
  config.data.partition = 'key'
  config.data.protocol = 'random'
  config.data.tasks_per_client = 2
  config.data.test_fraction = 0.25
  config.data.validation_fraction = 0.0
  config.data.standardize = True
  config.privacy.standardization_is_public = True
  config.cohort.slots = 'all'
  config.model.hidden = ()
  config.client.batch_size = 32
  config.client.local_epochs = 1
  config.run.rounds = 30
  config.report.more_metrics = ('balanced_accuracy', 'auc')
  config.report.title = 'Heart disease, private examples: test accuracy (%)'


def digits(config):
  """Ten silos for five tasks about handwritten digits."""
  config.data.name = 'digits'
  config.data.clients = 10
  config.data.test_fraction = 0.2
  config.data.validation_fraction = 0.0
  config.model.hidden = ()
  config.client.batch_size = 32
  config.client.local_epochs = 1
  config.run.rounds = 30
  config.report.title = 'Digits, private examples: test accuracy (%)'


def faces(config):
  """A thousand clients with fourteen photographs each: clients are private.

  Means and deviations of the features of faces are taken as public.
  """
  config.privacy.unit = 'client'
  config.privacy.clipping_norm = 0.5
  config.privacy.standardization_is_public = True
  config.aggregation.common = 'uniform'
  config.aggregation.task = 'uniform'
  config.data.name = 'utkface'
  config.data.clients = 1000
  config.data.standardize = True
  config.data.test_fraction = 0.2
  config.data.validation_fraction = 0.0
  config.model.backbone = 'dlib_resnet'
  config.model.hidden = (16,)
  config.cohort.clients_per_task = 0  # All: noise is small beside their sum.
  config.client.batch_size = 0
  config.client.local_epochs = 2
  config.run.rounds = 20
  config.compare.seeds = 1
  config.report.title = 'UTKFace, private clients: test accuracy (%)'


def grid(config):
  """The search: validation data of splits that no table is made from."""
  config.data.validation_fraction = 0.2
  config.run.first_seed = 1000
  config.run.evaluate_every = config.run.rounds


def smoke(config):
  """A few rounds in few silos."""
  digits(config)
  config.cases = ('majority', 'isolated', 'multi_task_fl', 'mr_mtl')
  config.run.rounds = 2
  config.run.seeds = 2
  config.run.evaluate_every = 2
  config.report.figure_formats = ()


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'private'
  config.cases = _CASES
  config.privacy.unit = 'example'
  config.privacy.clipping_norm = 1.0
  config.privacy.epsilon = 3.0
  config.client.learning_rate = 0.5
  config.algorithm.task_layers = 1
  config.algorithm.personal_layers = 1  # Of FedPer.
  config.execution.compile_effort = 'low'  # Rounds take milliseconds.
  config.overrides = ml_collections.ConfigDict(_OVERRIDES)
  config.compare.learning_rates = (0.1, 0.3, 1.0, 3.0)
  config.compare.seeds = 2
  config.run.seeds = 5
  config.run.evaluate_every = 10
  config.report.view = 'client'
  config.report.baseline = 'isolated'
  config.report.curve_case = ''
  config.report.figure_formats = ('pdf', 'svg')
  config.report.labels = {'isolated': 'Local'}
  digits(config)
  return config_lib.apply_variants(
    config,
    variants,
    {
      'har': har,
      'blocked': blocked,
      'hearts': hearts,
      'digits': digits,
      'faces': faces,
      'grid': grid,
      'smoke': smoke,
    },
  )

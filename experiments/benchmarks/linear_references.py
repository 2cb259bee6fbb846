"""Linear regressions in closed form, to compare trained rows with.

python -m experiments.benchmarks.linear_references \
    --config=configs/relations.py:exam

The splits, standardized features and targets are those of the config's runs;
see `ridge` for the models, and for how each one's penalty is chosen.
"""

from absl import flags

from ..console import command_line
from ..console import config_files
from ..console import programs
from . import outputs

_CONFIG = config_files.define_config()
_OUTPUT = command_line.define_path('output', 'A JSON file for the figures.')
flags.mark_flag_as_required('config')


def main() -> int:
  """Measures the config's data."""
  from . import ridge

  config = _CONFIG.value
  figures = {'seeds': config.run.seeds, 'references': ridge.references(config)}
  outputs.show(figures, _OUTPUT.value)
  return 0


if __name__ == '__main__':
  programs.run(main)

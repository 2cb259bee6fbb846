"""Determinism: when the same command gives the same bits again."""

import os

# Read by XLA when JAX starts. The second one is part of the first one today.
FLAGS = ('--xla_gpu_deterministic_ops=true', '--xla_gpu_autotune_level=0')
GUARANTEE = (
  'the same bits again for the same config, seeds, machine, versions and '
  'number of devices; other numbers of devices and forms of execution agree to '
  'rounding'
)


def use() -> None:
  """Leaves XLA only operations whose results never vary; before JAX starts.

  It acts on GPU, after what the user gave in XLA_FLAGS. Elsewhere operations
  never vary.
  """
  given = [flag for flag in flags_of_xla() if flag not in FLAGS]
  os.environ['XLA_FLAGS'] = ' '.join((*given, *FLAGS))


def is_used() -> bool:
  """Whether `use` was called, or the user gave the same flags."""
  return set(FLAGS) <= set(flags_of_xla())


def flags_of_xla() -> list[str]:
  """What the environment says to XLA."""
  return os.environ.get('XLA_FLAGS', '').split()

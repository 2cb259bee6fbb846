"""Determinism: when a command reproduces its results bit for bit."""

import os

# Read by XLA when JAX starts. The second one is part of the first one today.
FLAGS = ('--xla_gpu_deterministic_ops=true', '--xla_gpu_autotune_level=0')
GUARANTEE = (
  'the same bits again for the same config, seeds, machine, versions and '
  'number of devices; other numbers of devices and execution modes agree to '
  'rounding'
)


def use() -> None:
  """Restricts XLA to deterministic operations; before JAX starts.

  It acts on GPU, after the flags that the user gave in XLA_FLAGS. Elsewhere
  operations are deterministic anyway.
  """
  given = [flag for flag in flags_of_xla() if flag not in FLAGS]
  os.environ['XLA_FLAGS'] = ' '.join((*given, *FLAGS))


def is_used() -> bool:
  """Whether `use` was called, or the user gave the same flags."""
  return set(FLAGS) <= set(flags_of_xla())


def flags_of_xla() -> list[str]:
  """The flags in XLA_FLAGS."""
  return os.environ.get('XLA_FLAGS', '').split()

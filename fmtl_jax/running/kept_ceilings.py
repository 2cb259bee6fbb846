"""Ceilings of the machine at hand, measured once and kept.

By them `execution.name=auto` decides which kernels are factored; without them,
by those of a device that was measured (`execution.ceilings`). They are only
kept where somebody asks for it: another choice rounds differently.
"""

import json
import math
import pathlib
import platform
import re
import warnings

import jax

from fmtl_jax import execution
from fmtl_jax.running import machine
from fmtl_jax.storage import temporaries


def path() -> pathlib.Path:
  """Where those of the first device are kept."""
  device = jax.local_devices()[0]
  name = f'{platform.node() or "here"}-{device.platform}-{device.device_kind}'
  name = re.sub(r'[^A-Za-z0-9._-]+', '_', name)
  return machine.cache_folder() / 'ceilings' / f'{name}.json'


def keep(ceilings: execution.Ceilings) -> pathlib.Path:
  """Keeps them for the next runs of this machine.

  Args:
    ceilings: Of the first device.

  Returns:
    Their file; without it, `execution.ceilings` count again.

  Raises:
    OSError: If it cannot be written.
  """
  file = path()
  text = json.dumps(ceilings._asdict(), indent=1)
  with temporaries.renamed(file) as temporary:
    temporary.write_text(f'{text}\n', encoding='utf-8')
  return file


def kept() -> execution.Ceilings | None:
  """Those that were kept; None if there are none.

  With several processes it is None: all of them have to choose the same.
  """
  if jax.process_count() > 1:
    return None
  file = path()
  try:
    found = json.loads(file.read_text(encoding='utf-8'))
    ceilings = execution.Ceilings(**found)
    if not all(math.isfinite(rate) and rate > 0 for rate in ceilings):
      raise ValueError('rates have to be above 0')
  except FileNotFoundError:
    return None
  except (OSError, TypeError, ValueError) as error:
    reason = ' '.join(str(error).split())
    warnings.warn(
      f'Ceilings in {file} cannot be read ({reason}) and do not count; remove '
      'it, or measure them again.',
      stacklevel=2,
    )
    return None
  return ceilings

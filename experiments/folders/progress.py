"""Progress of a run: its log has lines where a bar is shown."""

import functools

from . import logs
from fmtl_jax.running import progress

Progress = functools.partial(progress.Progress, note=logs.note)

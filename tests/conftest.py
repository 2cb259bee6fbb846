"""Settings of all tests, before JAX starts."""

import gc
import os
import tempfile

import jax

jax.config.update('jax_num_cpu_devices', 8)
# A compiled program on a toy is traced and lowered once, and kept: a fifth of
# that time would go to where its lines are and to looking for garbage.
jax.config.update('jax_traceback_in_locations_limit', 0)
gc.set_threshold(50_000, 20, 1_000)

# Many tests train the same toys: what one of them has compiled, no other one
# compiles again. Workers are told where that is by the first process; a folder
# that the user names is kept for the next session.
_COMPILED = 'TESTS_COMPILED'
if _COMPILED not in os.environ:
  _folder = tempfile.TemporaryDirectory()
  os.environ[_COMPILED] = _folder.name
jax.config.update('jax_compilation_cache_dir', os.environ[_COMPILED])
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.1)

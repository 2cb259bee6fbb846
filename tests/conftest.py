"""Settings of all tests, before JAX starts."""

import gc

import jax

jax.config.update('jax_num_cpu_devices', 8)
# A compiled program on a toy is traced and lowered once, and kept: a fifth of
# that time would go to where its lines are and to looking for garbage.
jax.config.update('jax_traceback_in_locations_limit', 0)
gc.set_threshold(50_000, 20, 1_000)

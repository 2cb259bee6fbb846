"""Settings of all tests, before JAX starts."""

import jax

jax.config.update('jax_num_cpu_devices', 8)

"""Configs: one file for each experiment, run by its path or its name.

They import `fmtl_jax.experiments`, as a copy in a folder of the user's does.
"""

if __name__ == 'configs':  # In a checkout, which says where that lies.
  import experiments as experiments

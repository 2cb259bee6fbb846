"""Running: algorithms as compiled programs on the devices of this machine.

`program`      an algorithm mapped over seeds and devices, compiled once
`compilation`  programs are compiled on all cores
`devices`      which devices have a run, and where arrays are
`machine`      JAX with all cores, and with compiled programs that are kept
`progress`     bars and lines
`interrupts`   Ctrl-C between two rounds

`kept_ceilings` has what this machine is capable of, where that was measured.
"""

# What is public of it is so in `fmtl_jax`.
__all__ = ()

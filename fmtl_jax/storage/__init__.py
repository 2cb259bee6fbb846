"""Files that are complete or not there, and checkpoints in them.

`checkpoints`  states of runs, through orbax
`saved_models` parameters of models, as checkpoints of orbax or tensor files
`host_trees`   trees on the host, and the differences of two
`orbax_logs`   silences what orbax logs of errors that are raised
`orbax_paths`  refuses folders in which orbax loses what it writes
`digests`      digests against which files are read back
`tensor_files` one model as a `.safetensors` file
`temporaries`  temporary files and folders, renamed when complete
`critical`     writes that no other thread interrupts
`archives`     zip files of others, read with limits
"""

# Each by its module: `checkpoints` imports orbax.
__all__ = ()

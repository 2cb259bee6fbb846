"""Studies: experiments, sweeps, comparisons, held-out clients."""

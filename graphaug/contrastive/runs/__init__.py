"""The life of a run, the same for every modality: what it writes, how it goes on, what happens between its steps.

`task` is what a modality brings to it. May import: the core, and the rest of `graphaug.contrastive`, which knows
nothing of runs.
"""

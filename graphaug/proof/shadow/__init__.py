"""Whether a captured graph is the model: both run in the shadow, and their records are compared operation by operation.

May import: the rooms below `graphaug.proof`, and `graphaug.proof.equivalence`, the trial run where there is no shadow.
"""

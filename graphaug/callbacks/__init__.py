"""What changes while a model trains in somebody's trainer: the rate, the share of rows, what is frozen.

`during` holds what there is to do at each step, and knows no framework; `trainer` and `lightning` call it from theirs.

May import: the core. The frameworks are imported by `trainer` and `lightning` alone.
"""

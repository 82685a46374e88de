"""Whether a captured graph is the model: both run in the shadow, and their records are compared operation by operation.

`faithful` compares, in the situations that matter; `readiness` and `stand_ins` prepare the model, and `runs` makes one
run. `recorder`, `records` and `origins` write down what it does, `surroundings` and `watched` what it leaves changed;
`differences` says what differs. `trial_run` compares where there is no shadow. May import: the rooms below
`graphaug.proof`, and `graphaug.proof.equivalence`.
"""

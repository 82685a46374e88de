"""Where: from what a user writes to the places that it names in a model.

A string is parsed (`language`), and found (`resolve`) in what is known of a model (`structure`, `model_structure`).
May import: errors, augment, capture.
"""

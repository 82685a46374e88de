"""What is skipped: the backward of rows whose gradient is stopped, where that changes no number.

May import: errors, augment, capture, select, surgery, proof.
"""

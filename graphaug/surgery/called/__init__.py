"""What rewritten graphs call that torch has not: values of repeated rows, kept rows, kept tokens.

May import: errors, augment.
"""

"""What a person reads in a terminal: help in groups, tables that fit, names that print, errors in options' words.

May import: errors. `printable` and `table` are used by the core as well.
"""

"""Which graphs: molecules, folders in TU's format, digits; their labels, and how they are split.

May import: errors, and of this room what a graph is (`batch`), the settings and the packages.
"""

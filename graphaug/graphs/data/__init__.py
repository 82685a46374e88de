"""Which graphs: molecules, folders in TU's format, digits; their labels, and how they are split."""

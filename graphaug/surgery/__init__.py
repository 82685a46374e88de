"""What is done to a model: a plan is made, nodes are inserted, parameters frozen, and a module comes out.

``rewritten/`` is what that module is made of. May import: errors, augment, capture, select.
"""

"""What is true of a captured model: that a cut separates, that the graph is the model, that rows do not meet.

May import: errors, augment, capture, select, surgery. It changes nothing.
"""

"""What one call of opened code is: an operation, a question about a tensor, or the switch of a mode.

May import: nodes, ledger, leaves and answers of `graphaug.capture.recording`, and its values.
"""

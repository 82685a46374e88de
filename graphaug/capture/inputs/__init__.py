"""What a model is called with: its signature and examples, what to try where there are none, why some do not fit.

May import: errors, torch_private, and `graphaug.capture.values`.
"""

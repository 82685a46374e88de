"""Where the samples lie in a value, and that no sample sees another: followed through one trace, rule by rule.

`rows` traces and proves; `rules` is the table of rules; `samples` asks for a rewrite.
May import: the rooms below `graphaug.proof`.
"""

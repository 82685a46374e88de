"""The rules, one per kind of operation: where rows lie in what it returns, or how it lets them meet.

A rule may rely on this: an operation gives, for every entry of its result, a function of the entries that its
definition names. Rows stay apart where those are of one sample, at the same places in all samples. Then the gradient is
apart, too: torch's backward formulas are those of the definition. The exceptions are refused by name (an embedding that
scales its gradients by how often a token occurs in the batch). What is not in the table has no rule.

May import: `graphaug.proof.independence.call`, `graphaug.proof.independence.places`.
"""

"""The training that every modality shares: the engine, losses, schedules, settings, processes, the life of a run.

May import: the core. It knows no modality: `graphaug.vision` and `graphaug.text` bring data, model, objective and
evaluation.
Nothing is imported here, so that the losses need torch alone; the engine needs the extra ``[train]``.
"""

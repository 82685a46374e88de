"""What a run is told: settings and their checks, presets, YAML files.

May import: errors, augment's choices, `graphaug.terminal`, and of `graphaug.contrastive` the optimizers and schedules.
"""

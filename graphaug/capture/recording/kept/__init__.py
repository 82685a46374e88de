"""What the user's objects held before a capture, and how it is put back.

`walk` finds every object that a model's code can reach, and `layouts` says what is done with those of a type; `kinds`
notes contents and puts them back, `generators` does so for what moves on when it is asked, `caches` for tables of
`functools.lru_cache`, `names` for what is bound to names. Nothing of the user's runs: objects are read as
`graphaug.capture.recording.values.inside` says. May import: errors, `graphaug.capture.recording.values`.
"""

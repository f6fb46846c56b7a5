"""Pages that people read: `index.html` of a run, and the figures of a benchmark; one file each.

Made from records alone. Must not import models, search or the command line.
"""

"""HTML pages of runs, trainings, evaluations and preference stores; each is one file without requests.

Made from records only. Must not import models, search or the command line.
"""

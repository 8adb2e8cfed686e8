"""Making data: questions, answers, verdicts and the two sets D_safety and D_expert.

Each file is one step and knows nothing of files on disk: it gets an ``AskAll`` that answers requests, remembering what
was answered before, and returns records and a report of what was kept, dropped, failed and unscored.
"""

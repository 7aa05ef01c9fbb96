"""Real processes, a real broker and a real database, under random blows.

``python -m tests.chaos --minutes 5`` (``make chaos MINUTES=5``) keeps a steady flow of jobs going, strikes every few
seconds, and prints what became of every job and execution. A short form runs with the tests.
"""

"""Seeded simulation: the real handlers and their real SQL under a scheduler that misbehaves on purpose.

A seed draws the jobs, the order in which everything happens, and the faults; the same seed and commit replay the
same run. Time is virtual. What is real: every line of the services, PostgreSQL, the memory bus. What is not: the
network, the model endpoints, and the processes (a crash cancels every task of a service between two side effects).

All transactions share one connection, so that one runs at a time: that makes runs repeat exactly, and leaves the
interleaving of SQL statements to the integration tests.
"""

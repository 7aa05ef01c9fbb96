"""The API's SQL: reads of every table of schema ``results``, and the row of a submission.

Filters become fixed fragments of SQL with bound values; nothing a client wrote is ever part of a statement.
"""

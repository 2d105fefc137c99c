"""What the service keeps: a database (SQLite or PostgreSQL) and the pictures beside it.

tables      the tables, typed
database    opening, migrating, transactions
blobs       pictures by their SHA-256
casework    cases: make, list, sign, reopen, delete
cellwork    cells: add, list, change, undo
history     the log of every change
backup      one archive of everything, and back
"""

from __future__ import annotations

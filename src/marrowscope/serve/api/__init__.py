"""The endpoints; each is thin: who may, what is asked, one transaction, what is answered."""

from __future__ import annotations

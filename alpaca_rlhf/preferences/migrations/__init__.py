"""Alembic's versions of the database, oldest first. They run when a database is opened.

A version that was ever released is never changed: a new one is added.
"""

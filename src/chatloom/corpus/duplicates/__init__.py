"""Copies: of documents (exact.py, near.py), of passages (passages.py, substring.py), of books, of evaluation sets.

Everything is a pure function over shards and over sorted files of fixed-size records (runs.py), cut by ranges of hash
values: what is in memory at once depends on a setting, not on the corpus.
"""

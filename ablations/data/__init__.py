"""Corpora as token streams on disk, and the order in which every run reads them. No torch here."""

"""Runs on disk: the source of truth, from which W&B, tables and figures are made."""

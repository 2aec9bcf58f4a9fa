"""Runs on disk: the source of truth. W&B, tables and figures are made from it."""

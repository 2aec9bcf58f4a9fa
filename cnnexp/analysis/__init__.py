"""From the store to a table, figures and verdicts; nothing here trains."""

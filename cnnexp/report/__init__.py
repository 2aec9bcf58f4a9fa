"""The report of a sweep: its contents, as Markdown and as one page of HTML."""

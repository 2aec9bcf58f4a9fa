"""What W&B's server refuses: the client does not say so, least of all offline, and the run never arrives."""

import hashlib

LABEL_LIMIT = 64  # characters of a job type, or of a tag
NAME_LIMIT = 128  # of a run's id and name, its group, a project
DIGEST = 8


def shortened(text: str, limit: int, tail: str = "") -> str:
    """Keep a text within a limit: where it is longer, a hash of all of it takes the place of its end.

    Args:
        text: any.
        limit: characters that are allowed.
        tail: comes behind it, whole.

    >>> shortened("a long name", 20, " seed 1")
    'a long name seed 1'
    >>> shortened("a very long name", 20, " seed 1")
    'a ve-4e54041b seed 1'
    """
    room = limit - len(tail)
    if len(text) > room:
        digest = hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
        text = f"{text[: room - DIGEST - 1]}-{digest}"
    return text + tail

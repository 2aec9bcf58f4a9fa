"""Numbers as people read them."""


def short_number(number: float | int) -> str:
    """Three digits and a prefix.

    >>> short_number(28_938)
    '28.9k'
    """
    for prefix in ("", "k", "M", "G", "T", "P", "E"):
        if number < 999.5 or prefix == "E":
            return f"{number:.3g}{prefix}"
        number /= 1000
    raise AssertionError


def duration_text(seconds: float | int) -> str:
    """Two units at most.

    >>> duration_text(5400)
    '1 h 30 min'
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours_of_day = divmod(hours, 24)
    if days:
        return f"{days} d {hours_of_day} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"

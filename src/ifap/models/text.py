"""What the networks for text have in common."""

from __future__ import annotations

from ifap.errors import ConfigError

TINY = {"layers": 2, "heads": 4, "width": 64, "inner": 128}
"""The small networks of all three families: trained from nothing in seconds."""


def check_length(model: str, max_length: int, table: int) -> None:
    """Refuse texts that are longer than a network's table of positions.

    Parameters
    ----------
    model : str
        Name in the registry.
    max_length : int
        Tokens of the longest text.
    table : int
        Positions that the network has.

    Raises
    ------
    ConfigError
        If the texts are longer; names the model and the longest that does.
    """
    if max_length > table:
        raise ConfigError(
            f"max_length: {max_length} tokens are too many for '{model}': its table of positions has {table}"
        )

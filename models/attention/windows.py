"""Sliding windows of attention layers, in tokens. Plain Python."""

from __future__ import annotations

from models.errors import SettingError
from models.mixer import Place


def check_window(window: int | None, share: float | None = None) -> None:
    """Raise SettingError for a mix's window, or its share of the context, that is none."""
    if window is not None and window < 0:
        raise SettingError(f"window={window} must be tokens, or 0 for full attention.")
    if share is None:
        return
    if not 0 < share <= 1:
        raise SettingError(f"window_share={share:g} must be above 0 and at most 1.")
    if window is not None:
        raise SettingError(f"window={window} and window_share={share:g} are both set; give one.")


def layer_windows(window: int | None, place: Place, share: float | None = None) -> tuple[int, ...]:
    """Tokens seen by each layer of the model, 0 for all; empty where no layer has a window.

    window, or share of the training context: the mix's own for these layers; None: the protocol's,
    by the layer's index.
    """
    if share is not None:
        if place.context is None:
            raise SettingError(f"window_share={share:g} needs a training context; give window.")
        window = max(1, round(share * place.context))
    repeated = place.windows or (0,)
    windows = [0] * place.n_layers
    for layer, index in place.layers.items():
        if window is not None:
            windows[layer] = window
        elif index < place.n_mixers - 1:  # the last sees all
            windows[layer] = repeated[index % len(repeated)]
    return tuple(windows) if any(windows) else ()


def mean_keys(window: int, context: int) -> float:
    """Mean number of keys that a query of a context sees: 1, 2, …, window, then window."""
    window = min(window or context, context)
    return (window * (window + 1) / 2 + (context - window) * window) / context


def windows_problem(windows: tuple[int, ...], n_layers: int) -> str:
    """What is wrong with windows that were read from a file; empty where nothing."""
    if any(window < 0 for window in windows):
        return f"windows={windows!r:.60} cannot be used; valid: tokens, or 0 for all."
    if windows and len(windows) != n_layers:
        return (
            f"windows={windows!r:.60} cannot be used; valid: {n_layers} of them, one for each "
            "layer."
        )
    return ""

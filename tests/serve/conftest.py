"""The fixtures of `rooms`, under the name that pytest looks for."""

from rooms import make_room, room, tiny_model

__all__ = ["make_room", "room", "tiny_model"]

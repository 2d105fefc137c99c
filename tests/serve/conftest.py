"""The fixtures of `rooms`, under the name that pytest looks for."""

from rooms import full_model, make_room, room, tiny_model

__all__ = ["full_model", "make_room", "room", "tiny_model"]

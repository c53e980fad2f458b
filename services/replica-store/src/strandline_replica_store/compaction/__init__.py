"""Gives back the room of what nothing needs, and keeps the newest state together."""

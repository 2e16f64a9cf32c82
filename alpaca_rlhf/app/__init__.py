"""The app: chat, compare, rank and data in a browser."""

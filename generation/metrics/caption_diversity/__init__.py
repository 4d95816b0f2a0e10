"""How long and how varied captions are."""

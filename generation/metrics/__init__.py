"""Measurements of generated text, one `evaluate` folder each: they load alone, without the rest of the project."""

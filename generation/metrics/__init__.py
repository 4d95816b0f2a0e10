"""Measurements of generated text, one `evaluate` folder each."""

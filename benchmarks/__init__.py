"""Side-by-side measurements; each script ends with one line of JSON."""

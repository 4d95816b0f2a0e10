"""Whether instruction data leans."""

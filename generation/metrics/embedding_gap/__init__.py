"""The modality gap of pairs."""

"""The modality gap of the papers, without weights or images: made-up pairs, and every transfer method on them."""

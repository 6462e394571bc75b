"""InternVideo2 and its text encoder: the frozen towers, their file, and extraction with them."""

"""From a bundle, a video and sentences to moments: tokens, windows, decoding, one video or many."""

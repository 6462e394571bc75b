"""A corpus: many videos encoded once into a store, ordered by alignment with a sentence, the best of them grounded."""

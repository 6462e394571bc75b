"""HTML reports: self-contained files from the templates beside this one, and what is drawn in them."""

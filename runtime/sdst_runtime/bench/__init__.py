"""How long sessions take and how much memory, measured in turns; and the page that shows it."""

"""What a machine has of all that this project can use, found out by using it."""

"""What an exported graph holds and costs: export.json and the command's table."""

"""Do copies of one model say the same? Numbers, decisions and metrics, against a reference."""

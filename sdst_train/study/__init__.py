"""What trained models teach: ablations over seeds, and where the sampling offsets point."""

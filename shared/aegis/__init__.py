"""What at least two rooms of Aegis use: events, HTTP, settings, storage, signatures, errors."""

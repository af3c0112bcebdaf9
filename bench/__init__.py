"""Programs that measure: each prints one aligned table and can write JSON."""

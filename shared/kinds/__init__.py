"""What is known of a stored class: the types it may have, how it is validated, and its fields as bytes and as cells."""

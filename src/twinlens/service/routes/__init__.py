"""Routes of the HTTP interface: they parse, call public functions, and answer in JSON."""

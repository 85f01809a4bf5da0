"""Pages for people: HTML around the same functions as the HTTP interface."""

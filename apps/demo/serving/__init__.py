"""Serving the demo: its command, its web server, and the files that the browser loads."""

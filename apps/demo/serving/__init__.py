"""The server: the command, the web server and its middleware, and the browser's files."""

"""The media that keep a session: a folder, object storage, a dict."""

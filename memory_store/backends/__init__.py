"""The media that hold a session: a folder, object storage, a dict."""

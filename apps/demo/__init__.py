"""Watch a model read, remember and write: a Gradio application over `streamlm.Session`."""

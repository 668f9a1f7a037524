"""A web demo of `streamlm.Session`: watch a model read, remember and write. Built with Gradio."""

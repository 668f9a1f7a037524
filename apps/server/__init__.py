"""HTTP over `streamlm.engine`: the OpenAI API, and sessions that last."""

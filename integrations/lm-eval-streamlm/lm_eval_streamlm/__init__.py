"""The models of streamlm in the Language Model Evaluation Harness, as the model `streamlm`."""

from lm_eval_streamlm.model import StreamLM

__all__ = ["StreamLM"]

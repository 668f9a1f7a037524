"""The tabs of the page, and the frame that they share."""

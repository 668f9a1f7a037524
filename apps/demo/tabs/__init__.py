"""The tabs of the page, and the frame around them."""

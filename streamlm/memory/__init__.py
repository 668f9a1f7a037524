"""What becomes of slots that leave memory. No model here."""

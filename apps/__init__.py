"""Applications over streamlm.Session; they hold no model logic."""

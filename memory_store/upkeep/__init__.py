"""Care of a session as a whole: garbage, damage, copies and exports."""

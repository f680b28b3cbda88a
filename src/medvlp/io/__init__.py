"""Files to arrays and report sections; no torch in here."""

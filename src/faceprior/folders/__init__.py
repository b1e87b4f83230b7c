"""Files, and folders of any size: which they are, where results go, what is noted down and resumed."""

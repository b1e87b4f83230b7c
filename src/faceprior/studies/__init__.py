"""Open questions, answered with figures: each study writes a CSV file and a plot."""

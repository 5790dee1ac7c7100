"""Model cards: the template, and for each packaged weight a card and the evaluations that its numbers come from."""

"""Test-time adaptation: raise a label's probability in one picture."""

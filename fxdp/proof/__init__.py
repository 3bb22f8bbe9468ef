"""How a value is placed, what must hold (P1 to P6), how faults are reported, the certificate."""

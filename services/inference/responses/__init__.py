"""What an account under PERTURB is told: one policy a file, behind one interface. Policies know no I/O and no clock."""

"""For tests of programs that use Mouso, and of brokers: a clock to move by hand and the conformance suite."""

"""Reading through a storm: the same data in calm weather and with faults, every byte checked."""
